"""The shape that a value of an axolotl configuration must have, before anything is made of it.

A value of another shape is an error at its key and is then left out, so that the mappings may rely on it. What a plain value says
is the job's own validation to judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

SHAPES: dict[str, str] = {
    **dict.fromkeys(("unfrozen_parameters", "plugins", "roles_to_train"), "a list of words"),
    **dict.fromkeys(("special_tokens", "bnb_config_kwargs", "lr_scheduler_kwargs", "message_property_mappings"), "a group of plain values"),
    **dict.fromkeys(("fsdp_config", "model_config"), "a group of plain values"),
    "roles": "a group of lists of words",
    **dict.fromkeys(("datasets", "tokens", "pretraining_dataset", "deepspeed", "type", "peft_layers_to_transform", "peft_trainable_token_indices"), "anything"),
    **dict.fromkeys(("fsdp", "data_files", "lora_target_modules", "lora_modules_to_save"), "a word or a list of words"),
    **dict.fromkeys(
        (
            "batch_size", "shards", "shards_idx", "repeats", "save_steps", "saves_per_epoch", "eval_steps", "evals_per_epoch",
            "spectrum_top_fraction", "num_epochs", "val_set_size", "logging_steps", "save_total_limit", "micro_batch_size", "lora_r",
            "lora_alpha", "lora_dropout", "context_parallel_size", "sequence_parallel_degree", "tensor_parallel_size",
            "sequence_len", "warmup_steps", "early_stopping_patience", "eval_table_size", "eval_max_new_tokens",
            "eval_table_max_new_tokens",
        ),
        "a number",
    ),
}  # fmt: skip
"""Key -> shape; every other mapped key is `a plain value`."""


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (list, dict)) and not (isinstance(value, float) and not math.isfinite(value))


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_FITS: dict[str, Callable[[Any], bool]] = {
    "anything": lambda value: True,
    "a plain value": _is_plain,
    "a number": lambda value: isinstance(value, (int, float)) and _is_plain(value) and value >= 0,
    "a list of words": _is_words,
    "a word or a list of words": lambda value: isinstance(value, str) or _is_words(value),
    "a group of plain values": lambda value: (
        isinstance(value, dict)
        and all(
            _is_plain(inner) or (name == "additional_special_tokens" and _is_words(inner))
            for name, inner in value.items()
        )
    ),
    "a group of lists of words": lambda value: (
        isinstance(value, dict) and all(isinstance(inner, str) or _is_words(inner) for inner in value.values())
    ),
}


def misshapen(key: str, value: Any) -> str | None:
    """What is wrong with the shape of a stated value, or None. False and empty values say `off` and pass."""
    if value in (None, False, "", [], {}):
        return None
    shape = SHAPES.get(key, "a plain value")
    value = number(value) if shape == "a number" else value
    return None if _FITS[shape](value) and not (shape == "a number" and value is True) else f"must be {shape}"


def number(value: Any) -> Any:
    """A number that YAML 1.1 or quotes made text (`"5e-6"`) as a number; anything else as it is."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
