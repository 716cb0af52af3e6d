"""`dolphin spectrum scan`, `select` and `names`. Owns what the commands print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launcher.models.architecture import count, find_architecture, stored_shapes
from launcher.models.hub_cache import local_folder
from launcher.models.spectrum import read_snr, select, share_of
from launcher.plan.unfrozen import scan
from launcher.runs.ledger import cache_dir
from trainer.run.adapter_files import base_of, is_adapter


def scan_command(
    model: str, out: str | None = None, *, device: str = "auto", batch: int | None = None, revision: str | None = None
) -> int:
    """Measure `model` (folder or hub id) into `out`, and print that path. Its progress is on standard error."""
    slug = Path(model).resolve().name if Path(model).is_dir() else model.replace("/", "-")
    path = Path(out or f"snr_results_{slug}.json")
    options = ["--out", str(path), "--device", device]
    scan(model, revision, options + ([] if batch is None else ["--batch", str(batch)]))
    print(path)
    return 0


def select_command(snr_path: str, top: str = "50%", as_json: bool = False) -> int:
    """Print the patterns of the best layers, ready for `train.unfrozen`."""
    share_of(top)
    patterns = select(read_snr(snr_path), top)
    print(json.dumps(patterns, indent=2) if as_json else "\n".join(f"- {pattern}" for pattern in patterns))
    return 0


def names_command(model: str, revision: str | None = None, as_json: bool = False) -> int:
    """Print parameter names and shapes, from the safetensors headers where they are here, else from config.json."""
    if is_adapter(model):
        model, revision = base_of(Path(model))
        print(f"this is an adapter; the names are those of its base {model}", file=sys.stderr)
    folder = local_folder(model, revision)
    if folder is not None and any(folder.glob("*.safetensors")):
        shapes = stored_shapes(folder)
    else:
        shapes = find_architecture(model, revision, cache=cache_dir()).shapes
    if as_json:
        print(json.dumps({name: list(shape) for name, shape in shapes.items()}, indent=2))
        return 0
    width = max(map(len, shapes))
    for name, shape in shapes.items():
        print(f"{name:<{width}}  {' x '.join(f'{side:,}' for side in shape)}")
    print(f"{len(shapes)} tensors, {sum(map(count, shapes.values())):,} parameters", file=sys.stderr)
    return 0
