"""A folder that a run left, or anyone's, as a model that answers: a whole model, or an adapter beside its base.

Owns how each is loaded and what is said where a part of it is not there. Refuses to know runs, prompts and answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.export import base_files
from trainer.run import adapter_files
from trainer.run.adapter_files import Base
from trainer.run.exits import BadInput

if TYPE_CHECKING:
    import torch


def tokenizer_of(folder: Path) -> Any:
    """Raises BadInput where it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"the tokenizer of {folder} cannot be read: {_first_line(error)}") from error


def model_of(folder: Path, dtype: torch.dtype, base: str | None = None) -> Any:
    """The model in `folder`, in `dtype` on the CPU and not training; an adapter's base where `base` says, else where its own
    configuration says. Raises BadInput where either is not there or does not load."""
    if adapter_files.is_adapter(folder):
        named = adapter_files.base_of(folder)
        return beside_base(folder, named if base is None else Base(base, None), len(tokenizer_of(folder)), dtype)
    if base is not None:
        raise BadInput(f"{folder} is a whole model: there is no base to name")
    return _loaded(str(folder), None, dtype, f"{folder} does not load")


def beside_base(adapter: Path, base: Base, vocabulary: int, dtype: torch.dtype) -> Any:
    """Base and adapter as one module of peft's, the base's vocabulary grown to `vocabulary` rows. Raises BadInput."""
    try:
        from peft import PeftModel
    except ImportError:
        raise BadInput("an adapter needs peft: pip install 'dolphin-launcher[lora]'") from None
    from trainer.model import quiet
    from trainer.model.build import grow_vocabulary

    quiet.bitsandbytes()
    model = _loaded(base.name, base.revision, dtype, f"the base of {adapter}, {base.name}, does not load")
    grow_vocabulary(model, vocabulary)
    try:
        return PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadInput(f"the adapter in {adapter} does not load beside {base.name}: {_first_line(error)}") from error


def size_bytes(folder: Path) -> int:
    """Bytes of the weights that `model_of` would read: the folder's own, and those of an adapter's base as far as its files are
    here. Raises BadInput."""
    found = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if adapter_files.is_adapter(folder):
        stored = base_files.tensors_of(*adapter_files.base_of(folder))
        found += sum(tensor.size_bytes for tensor in stored.values())
    return found


def _loaded(name: str, revision: str | None, dtype: torch.dtype, problem: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype).eval()
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BadInput(f"{problem}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
