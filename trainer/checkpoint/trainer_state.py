"""TrainerState: the few numbers that a run carries from step to step and from attempt to attempt. Knows no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple


class Best(NamedTuple):
    """The best value of a metric so far, and after which step it was measured."""

    metric: str
    value: float
    step: int


@dataclass(slots=True)
class TrainerState:
    """All ranks hold the same values. `step` counts completed optimizer steps and is the data cursor: the plan is global."""

    step: int = 0
    tokens: int = 0
    """Tokens seen, padding left out, over all ranks."""
    trained_tokens: int = 0
    """Tokens that had a label."""
    best: Best | None = None
    """By `checkpoint.keep_best`; the checkpoint of its step is kept."""
    gain: Best | None = None
    """Of `train.stop`: the last value that was better by more than its min_delta."""
    num_without_gain: int = 0
    """Evaluations since then."""
    evaluated_step: int = 0
    """Of the last evaluation: a stop may leave one, which is made up for when the run goes on."""
    attempt: int = 1
    """Starts of the trainer on this run, counted by the trainer itself."""

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> TrainerState:
        """Of this version or another: what it does not know is left out."""
        known = {field.name: state[field.name] for field in fields(cls) if field.name in state}
        known = {"evaluated_step": known.get("step", 0)} | known  # before it was noted, none was left
        known |= {name: Best(*known[name]) for name in ("best", "gain") if known.get(name) is not None}
        return cls(**known)
