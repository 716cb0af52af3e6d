"""What an export must hold: the base's tensors plus what was meant to change, under the base's names.

Owns the data types of exported tensors and the comparison of a written folder with model and base. Refuses to know the
tokenizer, the card and DeepSpeed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import torch

from trainer.run.exits import TrainingFailed
from trainer.run.weights_index import StoredTensor, stored_tensors

MAX_LOADED_BYTES = 2 << 30
"""A larger export is not loaded once more, only to be checked, on a node that is paid for by the minute."""
NUM_NAMED = 3


def dtype_chooser(model: Any, base: Mapping[str, StoredTensor]) -> Callable[[str, torch.Tensor], torch.dtype]:
    """(name, tensor) -> the type to export it in: bf16, but fp32 where the family insists on it or where a base in half
    precision holds that one tensor in fp32. Buffers and whole numbers stay as they are; the caller asks for parameters."""
    strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    kept = [re.compile(rf"(^|\.){re.escape(name)}($|\.)") for name in strict]
    exceptions = {name for name, tensor in base.items() if tensor.dtype == "F32"} if is_half(base) else set()

    def choose(name: str, tensor: torch.Tensor) -> torch.dtype:
        if not tensor.is_floating_point():
            return tensor.dtype
        if name in exceptions or any(pattern.search(name) for pattern in kept):
            return torch.float32
        return torch.bfloat16

    return choose


def restore_unchanged(weights: dict[str, torch.Tensor], base: Mapping[str, StoredTensor]) -> None:
    """Where a base in half precision holds a tensor in fp32, training rounded it to bf16: one that has not changed since
    is exported with the base's own digits."""
    if not is_half(base):
        return
    from safetensors import safe_open

    for name, entry in base.items():
        if entry.dtype != "F32" or name not in weights or tuple(weights[name].shape) != entry.shape:
            continue
        with safe_open(entry.file, "pt") as handle:
            own = handle.get_tensor(name)
        if torch.equal(own.to(torch.bfloat16), weights[name].to(torch.bfloat16)):
            weights[name] = own


def refuse_incomplete(model: Any, gathered: Set[str]) -> None:
    """Raises TrainingFailed where a parameter or persistent buffer of the model is not among the names gathered."""
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    lacking = sorted(set(model.state_dict()) - gathered - ignored)
    if lacking:
        raise TrainingFailed(f"the export would lack {_named(lacking)}; the last checkpoint is whole, nothing is lost")


def compare(folder: Path, model: Any, base: Mapping[str, StoredTensor]) -> list[str]:
    """Hold the written weights against the base's; what a person should know, a line each.

    Raises TrainingFailed where the folder would not load as what was trained.
    """
    written = stored_tensors(folder)
    if not base:
        return []
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    lost = sorted(name for name in base.keys() - written.keys() if name not in tied)
    new = sorted(name for name in written.keys() - base.keys() if name not in tied)
    _refuse_other_shapes(written, base)
    warnings = []
    if lost or new:
        warnings = _explain_names(folder, written, lost, new)
    if is_half(base):
        narrowed = sorted(
            name for name in written.keys() & base.keys() if base[name].dtype == "F32" and written[name].dtype != "F32"
        )
        if narrowed:
            warnings.append(f"the export holds {_named(narrowed)} in bf16, the base in fp32")
    return warnings


def _explain_names(folder: Path, written: Mapping[str, StoredTensor], lost: list[str], new: list[str]) -> list[str]:
    """Names that only one of base and export has: harmless where transformers loads the folder whole."""
    if sum(tensor.size_bytes for tensor in written.values()) <= MAX_LOADED_BYTES:
        from transformers import AutoModelForCausalLM

        _, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.bfloat16)
        broken = sorted([*found["missing_keys"], *(str(entry[0]) for entry in found["mismatched_keys"])])
        if broken:
            raise TrainingFailed(
                f"the exported folder does not load as the model that was trained: {_named(broken)} would be random; "
                "the last checkpoint is whole, nothing is lost"
            )
    warnings = []
    if lost:
        warnings.append(f"the base holds {_named(lost)}, which the model does not use: left out of the export")
    if new:
        warnings.append(f"the export holds {_named(new)} under names that the base's files do not have")
    return warnings


def _refuse_other_shapes(written: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor]) -> None:
    """A tensor may only have grown along its first side, as a vocabulary does."""
    for name in sorted(written.keys() & base.keys()):
        now, then = written[name].shape, base[name].shape
        if now != then and not (now[1:] == then[1:] and now[:1] > then[:1]):
            raise TrainingFailed(
                f"the export holds {name} in the shape {now}, the base in {then}; the last checkpoint is whole, nothing is lost"
            )


def is_half(base: Mapping[str, StoredTensor]) -> bool:
    """Whether most of the base's numbers are bf16."""
    sizes = Counter[str]()
    for tensor in base.values():
        sizes[tensor.dtype] += tensor.num_elements
    return bool(sizes) and sizes.most_common(1)[0][0] == "BF16"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
