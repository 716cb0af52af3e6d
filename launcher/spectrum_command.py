"""`dolphin spectrum scan|select|names`, and the resolving of `train.unfrozen: {spectrum: ...}` into plain patterns.

Owns what the commands print and the cache of scans. Refuses to measure: that takes torch, so the trainer's scanner runs
as a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

from launcher.architecture import count, find_architecture, stored_shapes
from launcher.errors import BadUsage, LauncherError
from launcher.hub_cache import local_folder
from launcher.ledger import cache_dir
from launcher.spectrum_select import read_snr, select, share_of
from trainer.exits import BadInput, ExitCode
from trainer.spec import TrainSpec, UnfrozenSpec
from trainer.weights_index import fingerprint, stored_tensors

Spec = TypeVar("Spec", bound=TrainSpec)
"""A TrainSpec, or the JobSpec that holds one."""


def scan_command(
    model: str, out: str | None = None, *, device: str = "auto", batch: int | None = None, revision: str | None = None
) -> int:
    """Measure `model` (folder or hub id) into `out`, and print that path. Its progress is on standard error."""
    slug = Path(model).resolve().name if Path(model).is_dir() else model.replace("/", "-")
    path = Path(out or f"snr_results_{slug}.json")
    options = ["--out", str(path), "--device", device]
    _scan(model, revision, options + ([] if batch is None else ["--batch", str(batch)]))
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
    folder = local_folder(model, revision)
    if folder is not None and any(folder.glob("*.safetensors")):
        shapes = stored_shapes(folder)
    else:
        shapes = find_architecture(model, revision).shapes
    if as_json:
        print(json.dumps({name: list(shape) for name, shape in shapes.items()}, indent=2))
        return 0
    width = max(map(len, shapes))
    for name, shape in shapes.items():
        print(f"{name:<{width}}  {' x '.join(f'{side:,}' for side in shape)}")
    print(f"{len(shapes)} tensors, {sum(map(count, shapes.values())):,} parameters", file=sys.stderr)
    return 0


def resolve_unfrozen(spec: TrainSpec) -> tuple[str, ...] | None:
    """`train.unfrozen` as plain patterns: what is written, or the written patterns and then the selected layers.

    Scans the model first where `snr` names one; the scan is kept by the content of its weights.
    """
    unfrozen = spec.train.unfrozen
    if not isinstance(unfrozen, UnfrozenSpec):
        return unfrozen
    source = unfrozen.spectrum.snr
    path = Path(source) if Path(source).is_file() else _scanned(source, spec.model.revision)
    return (*unfrozen.patterns, *select(read_snr(path), unfrozen.spectrum.top))


def with_resolved_unfrozen(spec: Spec) -> Spec:
    """The same specification with `train.unfrozen` as plain patterns: what the node is given."""
    if not isinstance(spec.train.unfrozen, UnfrozenSpec):
        return spec
    train = spec.train.model_copy(update={"unfrozen": resolve_unfrozen(spec)})
    return spec.model_copy(update={"train": train})


def _scanned(model: str, revision: str | None) -> Path:
    """The SNR file of `model` in the cache, measured now where it is not there."""
    folder, cache = local_folder(model, revision), cache_dir() / "spectrum"
    if folder is not None:
        try:
            kept = cache / f"{fingerprint(stored_tensors(folder))}.json"
        except BadInput as error:
            raise BadUsage(f"train.unfrozen.spectrum.snr: {error}") from None
        if kept.is_file():
            return kept
    print(f"measuring the signal-to-noise ratios of {model} (once; kept in {cache})", file=sys.stderr)
    printed = _scan(model, revision, ["--cache", str(cache)])
    return Path(printed.strip().splitlines()[-1])


def _scan(model: str, revision: str | None, options: list[str]) -> str:
    """Run the trainer's scanner; its standard output."""
    if importlib.util.find_spec("torch") is None:
        raise BadUsage(
            "a scan needs torch, which is not installed here: pip install 'dolphin-launcher[train]', "
            "or give an SNR file scanned elsewhere"
        )
    command = [sys.executable, "-m", "trainer.spectrum", model, *options]
    command += [] if revision is None else ["--revision", revision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == ExitCode.BAD_INPUT:
        raise BadUsage(f"{model}: cannot be scanned; the reason is above")
    if done.returncode:
        raise LauncherError(f"the scan of {model} ended with exit code {done.returncode}; start it again to go on")
    return done.stdout
