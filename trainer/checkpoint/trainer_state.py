"""TrainerState: the few numbers that a run carries from step to step and from attempt to attempt. Knows no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class TrainerState:
    """All ranks hold the same values. `step` counts completed optimizer steps and is the data cursor: the plan is global."""

    step: int = 0
    tokens: int = 0
    """Tokens seen, padding left out, over all ranks."""
    trained_tokens: int = 0
    """Tokens that had a label."""
    best_eval_loss: float | None = None
    last_eval_loss: float | None = None
    attempt: int = 1
    """Starts of the trainer on this run, counted by the trainer itself."""

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> TrainerState:
        return cls(**state)
