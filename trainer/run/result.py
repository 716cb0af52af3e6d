"""Which settings decide the result of a run, and which its cost alone.

A checkpoint is compared by the first; a resumed run may change the others.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from trainer.run.spec import TrainSpec

RESULT_NEUTRAL = {
    "name", "track", "checkpoint", "export", "card", "evaluate", "push",
    "data.workers", "train.log_every", "train.evaluate_every", "train.evaluate_at_start", "train.stop", "train.zero",
    "train.offload",
    "train.loss_chunk", "train.micro_batch", "train.accumulation", "train.gradient_checkpointing", "train.deterministic",
    "train.kernels", "train.activation_offloading", "model.attention",
}  # fmt: skip
"""Settings that a resumed run may change: they alter cost or bookkeeping, not which update is computed from which data.
`train.deterministic` is one: it decides the rounding of a sum, and whether it is the same next time. `train.stop` is another: it
decides after which step a run ends, as fewer `max_steps` would, and not what any step does."""


LENGTH_SETTINGS = ("train.epochs", "train.max_steps")
"""Settings of which a finished run may be given more: it goes on from its end."""


def result_settings(spec: TrainSpec) -> dict[str, Any]:
    """Flat `group.key -> value` of everything that decides the result; what a checkpoint is compared by."""
    flat: dict[str, Any] = {}
    for group, value in spec.model_dump(mode="json").items():
        if group in RESULT_NEUTRAL:
            continue
        for key, inner in value.items():
            if f"{group}.{key}" not in RESULT_NEUTRAL:
                flat[f"{group}.{key}"] = inner
    return flat


def result_hash(spec: TrainSpec) -> str:
    """SHA-256 of `result_settings`."""
    text = json.dumps(result_settings(spec), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
