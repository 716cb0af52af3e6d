"""The nearest right key for a wrong one, anywhere in the job.

Owns the matching and the names that other trainers use for the same settings. Refuses to know lines and values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel

ELSEWHERE = {
    "lr": "train.learning_rate",
    "batch_size": "train.micro_batch",
    "per_device_train_batch_size": "train.micro_batch",
    "micro_batch_size": "train.micro_batch",
    "gradient_accumulation_steps": "train.accumulation",
    "total_batch_size": "train.global_batch",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "sequence_len": "data.sequence_length",
    "max_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "scheduler": "train.schedule",
    "warmup": "train.warmup_steps",
    "max_norm": "train.max_grad_norm",
    "gradient_clipping": "train.max_grad_norm",
    "deepspeed": "train.zero",
    "zero_stage": "train.zero",
    "dtype": "train.precision",
    "bf16": "train.precision",
    "flash_attention": "model.attention",
    "attn_implementation": "model.attention",
    "datasets": "data.sources",
    "dataset": "data.sources",
    "val_set_size": "data.validation_fraction",
    "sample_packing": "data.packing",
    "unfrozen_parameters": "train.unfrozen",
    "base_model": "model.base",
    "tokens": "model.added_tokens",
    "eval_steps": "train.evaluate_every",
    "early_stopping_patience": "train.stop",
    "logging_steps": "train.log_every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "output_dir": "checkpoint.store",
    "gpus": "resources.accelerators",
    "gpu": "resources.accelerators",
    "use_spot": "resources.spot",
    "cloud": "resources.infra",
    "region": "resources.regions",
    "image_id": "resources.image",
    "disk_size": "resources.disk_gb",
    "memory": "resources.memory_gb",
    "wandb_project": "track.wandb.project",
    "envs": "env",
}
"""What others call it -> what dolphin calls it."""


def nearest_key(wrong: str, right: Iterable[str]) -> str | None:
    """The key most like `wrong`, or None where nothing is alike."""
    found = difflib.get_close_matches(wrong.lower().replace("-", "_"), list(right), n=1, cutoff=0.7)
    return found[0] if found else None


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of every setting under `model`, groups included; lists of groups are walked through."""
    names = []
    for name, field in model.model_fields.items():
        names.append(f"{prefix}{name}")
        for group in groups_in(field.annotation):
            names += all_keys(group, f"{prefix}{name}.")
    return names


def groups_in(annotation: Any) -> list[type[BaseModel]]:
    """The groups (pydantic models) that a setting's type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [group for inner in get_args(annotation) for group in groups_in(inner)]


def unknown_key(group: str, key: str, known: list[str]) -> str:
    """What to say of `key` inside the dotted `group` ("" for the top): what is likely meant, or what the group has."""
    own = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == group]
    near = nearest_key(key, own)
    exact = [name for name in known if name.rpartition(".")[2] == key]
    other = ELSEWHERE.get(key.lower().replace("-", "_"))
    if (near and difflib.SequenceMatcher(None, near, key).ratio() > 0.85) or (near and not exact and not other):
        return f"unknown key; did you mean {near!r}?"
    if exact:
        home = exact[0].rpartition(".")[0]
        return f"unknown key here; it belongs under {home}" if home else "unknown key here; it belongs at the top level"
    if other:
        return f"unknown key; dolphin calls it {other!r}"
    last_words = {name.rpartition(".")[2]: name for name in reversed(known)}
    far = nearest_key(key, last_words)
    if far:
        return f"unknown key; did you mean {last_words[far]!r}?"
    return f"unknown key; {group or 'a job'} has {', '.join(own)}" if own else "unknown key; remove it"
