"""outcome.json, and the questions to events.jsonl that it and the supervisor ask. Owns no event of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from trainer.run.exits import EXIT_CODES, LIMITS, EndKind
from trainer.run.limits import Limits
from trainer.run.paid import paid
from trainer.run.redaction import redact
from trainer.run.run_folder import EventKind, RunDir, write_atomic


class PastEvents:
    """What events.jsonl says about the run so far; read again at every question, for the ranks write it too."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir

    def last(self, event: EventKind, field: str) -> Any | None:
        """`field` of the last `event` that has it; None where there is none."""
        found = [e.get(field) for e in self.run_dir.read_events() if e.get("event") == event.value]
        return next((value for value in reversed(found) if value is not None), None)

    def saved_step(self) -> int | None:
        """Step of the newest checkpoint that is known to be committed: saved, or resumed from."""
        kinds = (EventKind.CHECKPOINT_SAVED.value, EventKind.RESUMED.value)
        steps = [event.get("step") for event in self.run_dir.read_events() if event.get("event") in kinds]
        known = [step for step in steps if isinstance(step, int)]
        return known[-1] if known else None

    def early_stop(self, attempt: int) -> str:
        """That this attempt was ended by `train.stop`, and when; nothing where it was not."""
        found = [e for e in self.run_dir.read_events() if e.get("event") == EventKind.STOPPED_EARLY.value]
        if not found or found[-1].get("attempt") != attempt:
            return ""
        step, metric, best_step = (found[-1].get(name) for name in ("step", "metric", "best_step"))
        return f"stopped early at step {step}: {metric} was best at step {best_step}"

    def last_save_seconds(self) -> float | None:
        found = self.last(EventKind.CHECKPOINT_SAVED, "seconds")
        return float(found) if isinstance(found, int | float) else None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a start of the trainer ended."""

    kind: EndKind
    reason: str
    step: int
    attempt: int
    seconds: float


def write_outcome(past: PastEvents, ended: Ended, limits: Limits) -> None:
    """The last file of a start of the trainer: whoever finds it knows that the start is over, and how."""
    has_model = ended.kind is EndKind.DONE or (
        ended.kind in LIMITS and past.last(EventKind.EXPORTED, "attempt") == ended.attempt
    )
    bill = paid(past.run_dir, limits, None)
    record = {
        "state": ended.kind.value,
        "exit_code": int(EXIT_CODES[ended.kind]),
        "reason": ended.reason,
        "step": ended.step,
        "total_steps": past.last(EventKind.PLAN, "total_steps"),
        "eval_loss": past.last(EventKind.EVALUATED, "eval_loss"),
        "measures": past.last(EventKind.EVALUATED, "measures"),
        "model": past.last(EventKind.EXPORTED, "model") if has_model else None,
        "model_step": past.last(EventKind.EXPORTED, "step") if has_model else None,
        "attempt": ended.attempt,
        "seconds": ended.seconds,
        "planned": {"hours": limits.planned_hours, "usd": limits.planned_usd},
        "paid": {"hours": bill.hours, "usd": bill.usd},
    }
    write_atomic(past.run_dir.outcome, redact(json.dumps(record, ensure_ascii=False, indent=1)) + "\n")
