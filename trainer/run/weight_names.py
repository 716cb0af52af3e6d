"""Whether a model folder's weights are those of its configuration: which names are missing, have another shape, or wear
a wrapper's prefix.

One judgement for the launcher, which reads the headers, and the trainer, which has what transformers says of its loading.
Refuses to know torch, and which names a family has: those are handed in.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.run.exits import BadInput
from trainer.run.weights_index import tensors_in

Shape = tuple[int, ...]

WRAPPERS = ("_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, DDP and DeepSpeed, PEFT, FSDP and activation checkpointing put before the names of what they wrap."""
_WRAPPED = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(map(re.escape, WRAPPERS))})+")
_SHOWN = 3


class Difference(NamedTuple):
    """What the stored weights are short of."""

    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    """(name, shape in the files, shape that the configuration asks for)"""
    expected: int
    """How many names there should be."""


def compare(stored: Mapping[str, Shape], expected: Mapping[str, Shape], base_prefix: str = "model.") -> Difference:
    """Of `expected` what is not in `stored`. A name may be stored without `base_prefix`, as a headless model saves it."""
    missing, mismatched = [], []
    for name, shape in expected.items():
        found = stored.get(name, stored.get(name.removeprefix(base_prefix)))
        if found is None:
            missing.append(name)
        elif found != shape:
            mismatched.append((name, found, shape))
    return Difference(tuple(missing), tuple(mismatched), len(expected))


def wrapper_prefix(names: Iterable[str]) -> str | None:
    """The prefix that most wrapped names wear (`_orig_mod.`, also within a name), or None where no name wears one."""
    worn = Counter(match[0] for name in names for match in _WRAPPED.finditer(name))
    return worn.most_common(1)[0][0] if worn else None


def without_prefix(name: str, prefix: str | None) -> str:
    """`name` without a wrapper's `prefix`, at its beginning and within."""
    return name if not prefix else re.sub(rf"(?:^|(?<=\.)){re.escape(prefix)}", "", name)


def problem(base: str, difference: Difference, stored_names: Iterable[str]) -> str | None:
    """What is wrong with the weights and what to do, in a line or two; None where nothing is."""
    if difference.missing:
        count = len(difference.missing)
        prefix = wrapper_prefix(stored_names)
        way_out = "fetch or convert it again; `model.init: random` starts from random weights on purpose"
        if prefix is not None:
            way_out = (
                f"its names wear the prefix {prefix!r} of a wrapper: `model.weights_prefix: {prefix}` takes it off"
            )
        return (
            f"{base!r} lacks {count} of {difference.expected} weights ({_some(difference.missing)}), which would start "
            f"from random values; {way_out}"
        )
    if difference.mismatched:
        first = [f"{name} is {list(has)}, not {list(asked)}" for name, has, asked in difference.mismatched]
        return (
            f"{base!r} has {len(first)} weights of another shape than its config.json asks for ({_some(first)}): "
            "they belong to another configuration; fetch it again"
        )
    return None


def stored_weights(folder: Path) -> dict[str, Shape] | None:
    """Names and shapes in the files that transformers reads: those of the index, else model.safetensors. None where the
    weights are in another format. BadInput for a damaged file, or one that the index names and that is not there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BadInput(f"{index}: is no index of weights ({error}); fetch it again") from error
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        return None
    for name in files:
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: lacks {name}, which its index names; fetch the model again")
    return {tensor.name: tensor.shape for name in files for tensor in tensors_in(folder / name)}


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
