"""The weights of a model folder, written as they are gathered: rank 0 holds one file's worth of them, not the model.

Owns how tensors are shared out over files and the index of those. What a family's file format asks of names and tensors is
transformers' to know: each file is written by the model's own `save_pretrained`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.export import weights
from trainer.run.weights_index import StoredTensor, tensors_in

SHARD_BYTES = 5_000_000_000
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

Gathered = tuple[tuple[str, ...], torch.Tensor]
"""All names of a tensor that modules share, and the tensor."""


def write(
    model: Any, folder: Path, gathered: Iterable[Gathered], base: Mapping[str, StoredTensor], limit: int = SHARD_BYTES
) -> set[str]:
    """Write configuration and weights; the names of all that was gathered. A file has `limit` bytes, and what its last layer
    has beyond.

    Tensors of a layer stay together: transformers makes one tensor of a file of several of the model's, or several of one.
    """
    seen: set[str] = set()
    files: list[Path] = []
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    for part in _parts(model, gathered, limit, seen):
        state = {name: tensor for name, tensor in part.items() if name not in ignored}
        part.clear()
        if not state:
            continue
        weights.restore_unchanged(state, base)
        model.save_pretrained(folder, state_dict=state, max_shard_size=1 << 60)
        del state
        files.append((folder / WEIGHTS).rename(folder / f"part-{len(files)}.safetensors"))
    name_files(folder, files)
    return seen


def _parts(model: Any, gathered: Iterable[Gathered], limit: int, seen: set[str]) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of one file after the other. Whoever takes a part may empty it."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    part: dict[str, torch.Tensor] = {}
    size, layer = 0, ""
    for names, tensor in gathered:
        seen.update(names)
        kept = next((name for name in names if name not in tied), names[0])
        if size >= limit and _layer(kept) != layer:
            yield part
            part, size = {}, 0
        part[kept], layer = tensor, _layer(kept)
        size += tensor.numel() * tensor.element_size()
        del tensor
    yield part


def _layer(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `model.layers.3`; a name without a number is a layer of its own."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: number + 1])


def name_files(folder: Path, files: list[Path]) -> None:
    """The names that transformers looks for, and the index where there are several."""
    if len(files) == 1:
        os.replace(files[0], folder / WEIGHTS)
        return
    places: dict[str, str] = {}
    size = elements = 0
    for number, path in enumerate(files, 1):
        final = folder / f"model-{number:05d}-of-{len(files):05d}.safetensors"
        os.replace(path, final)
        for tensor in tensors_in(final):
            places[tensor.name] = final.name
            size += tensor.size_bytes
            elements += tensor.num_elements
    index = {"metadata": {"total_parameters": elements, "total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
