"""A written GGUF file, read with the `gguf` package's own reader and held against the model folder it was made of.

Owns the bounds of what a number format may lose, and the proof by llama.cpp where llama-cpp-python is installed. Refuses to know how
a file is written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.export.older_tools import PROBES
from trainer.run.exits import TrainingFailed
from trainer.run.settings.export import QUANTISED_KINDS

if TYPE_CHECKING:
    from trainer.finished.gguf.convert import Source

RELATIVE = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Largest error of a number, in its own size: half of the last bit that the format keeps."""
FP16_SMALLEST = 2.0**-25
"""Half of the smallest number that f16 holds."""
Q8_STEPS = 127
"""Of a block of q8_0 between 0 and its largest number."""
QUANTISED_RMS = 0.2
"""Of a kind that llama.cpp makes: root of the mean squared error, in that of the numbers. 4 bits give 0.05 to 0.1."""


def check(source: Source, path: Path, kind: str) -> None:
    """Raises TrainingFailed where tensors, tokens or template of the file are not the folder's."""
    import gguf

    reader = gguf.GGUFReader(path)
    _check_tokens(source, reader)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name, values in source.tensors():
        if name not in stored:
            raise TrainingFailed(f"{path.name} lacks {name}")
        tensor = stored.pop(name)
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = values.numpy()
        problem = _difference(found.reshape(expected.shape), expected, tensor.tensor_type.name, kind)
        if problem:
            raise TrainingFailed(f"{path.name}: {name} does not read as the model's: {problem}")
    if stored:
        raise TrainingFailed(f"{path.name} holds {next(iter(stored))}, which the model does not")


def _difference(found: np.ndarray, expected: np.ndarray, stored_as: str, kind: str) -> str:
    """What is wrong with a tensor's numbers; empty where nothing is."""
    error = np.abs(found - expected)
    if stored_as in RELATIVE:
        allowed = np.abs(expected) * RELATIVE[stored_as] + (FP16_SMALLEST if stored_as == "F16" else 0.0)
        worst = float((error - allowed).max(initial=0.0))
        return (
            f"{stored_as} is off by {worst:.3g} more than it rounds"
            if worst > 0 or not np.isfinite(found).all()
            else ""
        )
    if stored_as == "Q8_0" and kind == "q8_0":
        largest = np.abs(expected.reshape(-1, 32)).max(axis=1, keepdims=True)
        allowed = largest * (0.5 / Q8_STEPS + 2.0**-10) + FP16_SMALLEST * Q8_STEPS  # the block's scale is f16
        worst = float((error.reshape(-1, 32) - allowed).max(initial=0.0))
        return f"q8_0 is off by {worst:.3g} more than it rounds" if worst > 0 else ""
    size = float(np.sqrt(np.mean(expected**2)))
    loss = float(np.sqrt(np.mean(error**2))) / size if size else float(error.max(initial=0.0))
    return f"{stored_as} loses {loss:.2f} of its numbers' size" if loss > QUANTISED_RMS else ""


def _check_tokens(source: Source, reader: Any) -> None:
    held = source.tokens
    expected: dict[str, Any] = {
        "tokens": list(held.entries), "token_type": list(held.kinds), "model": held.model, "pre": held.pre,
        "add_bos_token": held.adds_bos, **{f"{_ROLES.get(role, role)}_token_id": number for role, number in held.ids.items()},
    }  # fmt: skip
    if held.merges:
        expected["merges"] = list(held.merges)
    found = {key: reader.get_field(f"tokenizer.ggml.{key}") for key in expected}
    if held.chat_template is not None:
        expected["chat_template"], found["chat_template"] = (
            held.chat_template,
            reader.get_field("tokenizer.chat_template"),
        )
    for key, value in expected.items():
        if found[key] is None or found[key].contents() != value:
            raise TrainingFailed(f"{reader_name(reader)}: {key} does not read as the tokenizer's")


_ROLES = {"unk": "unknown", "pad": "padding"}


def reader_name(reader: Any) -> str:
    return Path(getattr(reader.data, "filename", None) or "the file").name


def told(source: Source, path: Path, kind: str) -> str:
    """What is known of a file that was read back: by its reader, and by llama.cpp where that is here."""
    read = "read back: tensors within the format's rounding, tokens, template and stop tokens the same"
    if importlib.util.find_spec("llama_cpp") is None:
        return f"{read}; llama.cpp is not here to run it"
    return f"{read}; {by_llama_cpp(source, path, kind)}"


LARGEST_RUN_BYTES = 4 << 30
TOLERANCE = 0.3


def by_llama_cpp(source: Source, path: Path, kind: str) -> str:
    """llama.cpp cuts texts into the same tokens and gives the same logits as transformers do from the folder.

    Raises TrainingFailed where tokens differ, or the logits of a format that keeps 8 bits and more.
    """
    import llama_cpp
    from transformers import AutoTokenizer

    is_small = path.stat().st_size <= LARGEST_RUN_BYTES
    model = llama_cpp.Llama(
        str(path), vocab_only=not is_small, n_ctx=512, logits_all=True, n_gpu_layers=0, verbose=False
    )
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    texts = [*PROBES, *_chats(source, tokenizer)]
    for text in texts:
        expected = tokenizer(text, add_special_tokens=False).input_ids
        found = model.tokenize(text.encode(), add_bos=False, special=True)
        if list(found) != list(expected):
            raise TrainingFailed(f"{path.name}: llama.cpp cuts {text[:40]!r} into other tokens than transformers")
    if not is_small:
        return "llama.cpp cuts texts into the same tokens"
    difference = _logit_difference(source, model, tokenizer(texts[0], add_special_tokens=False).input_ids[:64])
    if difference > TOLERANCE and kind not in QUANTISED_KINDS:
        raise TrainingFailed(f"{path.name}: llama.cpp's logits differ by {difference:.2g} of their standard deviation")
    return (
        f"llama.cpp cuts texts into the same tokens, its logits differ by {difference:.1g} of their standard deviation"
    )


def _chats(source: Source, tokenizer: Any) -> Iterator[str]:
    if source.tokens.chat_template is not None:
        yield tokenizer.apply_chat_template(
            [{"role": "user", "content": "the sea"}], tokenize=False, add_generation_prompt=True
        )


def _logit_difference(source: Source, model: Any, ids: list[int]) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    model.reset()
    model.eval(ids)
    found = np.array(model.scores[: len(ids)])
    by_position = np.abs(found - expected).max(axis=1)
    return float(np.median(by_position) / expected.std())
