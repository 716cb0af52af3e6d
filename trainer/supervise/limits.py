"""The watch over deadline and budget: warns once, and says when what is left pays only for a save and the export.

Reads the clock, the records of the run folder and the step; decides nothing about ranks. On the node that tells of the run alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from trainer.run.exits import EndKind
from trainer.run.limits import Limits
from trainer.run.paid import HOUR, machines_of, paid
from trainer.run.run_folder import SPENT_FILE, EventKind
from trainer.supervise.outcome import PastEvents
from trainer.supervise.stop_flag import StopRequest

LOOK_EVERY_S = 5.0
WARN_AT = 0.8
"""Share of the budget that is spent when it is told."""
WARN_SLACK = 0.1
"""Of the time that is left: slack under this share of it is told."""
PACE_LOOKS = 60
LEAST_LOOKS = 4
"""First steps are slow: no pace is read from fewer."""

Warn = Callable[..., None]
"""warn(limit=, of=, reason=) writes the event and says it."""


class Watch:
    """Of one start of the trainer, which began at `began` (seconds since the epoch)."""

    def __init__(
        self,
        limits: Limits,
        past: PastEvents,
        warn: Warn,
        planned_step_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`planned_step_s` stands for a step until a pace was measured."""
        self._planned_step_s = planned_step_s or 0.0
        self._limits, self._past, self._warn, self._clock = limits, past, warn, clock
        machines = machines_of(past.run_dir, limits.price_usd_per_hour)
        self._price = machines[-1].price_usd_per_hour if machines else limits.price_usd_per_hour
        self._from, self._saves = clock(), self._num_saves()
        self._before = paid(past.run_dir, limits, self._from)
        self._looked_at = -LOOK_EVERY_S
        self._steps: deque[tuple[float, int]] = deque(maxlen=PACE_LOOKS)
        self._warned: set[tuple[str, float]] = {
            (str(event.get("limit")), float(event["of"]))
            for event in past.run_dir.read_events()
            if event.get("event") == EventKind.LIMIT_NEAR and isinstance(event.get("of"), int | float)
        }

    @property
    def is_needed(self) -> bool:
        return self._limits.deadline_at is not None or self._limits.budget_usd is not None

    def look(self, step: int | None) -> StopRequest | None:
        """What to ask for now, after `step` steps; at most once in LOOK_EVERY_S, and None in between. Before any rank starts
        (`step` None) only where nothing is saved: what is saved is worth its export, however late a machine was found."""
        now = self._clock()
        if not self.is_needed or now - self._looked_at < LOOK_EVERY_S:
            return None
        if step is None and self._past.saved_step() is not None:
            return None
        step = step or 0
        self._looked_at = now
        if step and (not self._steps or self._steps[-1][1] != step):
            self._steps.append((now, step))
        measured_s = self._past.last_save_seconds() or 0.0
        whole_s = max(self._limits.save_s, measured_s) + self._limits.export_s
        step_s, total = self._step_s(), self._past.last(EventKind.PLAN, "total_steps")
        ending_s = self._limits.ending_s(measured_s) + (self._planned_step_s if step_s is None else step_s)
        rest_s = None if step_s is None or not isinstance(total, int) else max(0, total - step) * step_s + whole_s
        spent = self._spent(now)
        self._write({"time": now, "usd": spent, "step_s": step_s})
        return self._deadline(now, ending_s, rest_s) or self._budget(spent, ending_s, rest_s)

    def _step_s(self) -> float | None:
        """Seconds of a step at the pace of the last looks; None at first."""
        if len(self._steps) < LEAST_LOOKS:
            return None
        (first_at, first), (last_at, last) = self._steps[0], self._steps[-1]
        return (last_at - first_at) / (last - first) if last > first else None

    def _deadline(self, now: float, ending_s: float, rest_s: float | None) -> StopRequest | None:
        deadline = self._limits.deadline_at
        if deadline is None:
            return None
        told = datetime.fromtimestamp(deadline, UTC).strftime("%Y-%m-%d %H:%M UTC")
        if now + ending_s >= deadline and (rest_s is None or now + rest_s > deadline):
            return StopRequest(f"deadline of {told}", EndKind.DEADLINE_REACHED)
        slack_s = None if rest_s is None else deadline - now - rest_s
        if slack_s is not None and slack_s < WARN_SLACK * (deadline - now):
            what = "will not be done by the deadline" if slack_s < 0 else "has little time to spare before the deadline"
            done = datetime.fromtimestamp(now + (rest_s or 0.0), UTC).strftime("%Y-%m-%d %H:%M UTC")
            self._tell("deadline", deadline, f"{what}, {told}: done at {done} as it goes")
        return None

    def _spent(self, now: float) -> float | None:
        """US dollars of the run in all; None where a price is not known."""
        if self._before.usd is None or self._price is None:
            return None
        hours = (now - self._from) / HOUR
        spent = self._before.usd + (self._price + self._limits.upkeep_usd_per_hour) * hours
        if self._limits.egress_usd_per_save:
            spent += self._limits.egress_usd_per_save * (self._num_saves() - self._saves)
        return spent

    def _budget(self, spent: float | None, ending_s: float, rest_s: float | None) -> StopRequest | None:
        budget, limits = self._limits.budget_usd, self._limits
        if budget is None or spent is None or self._price is None:
            return None
        per_s = (self._price + limits.upkeep_usd_per_hour) / HOUR

        def with_end(seconds: float) -> float:
            return spent + per_s * seconds + limits.egress_usd_per_save

        if with_end(ending_s) >= budget and (rest_s is None or with_end(rest_s) > budget):
            return StopRequest(f"${spent:,.2f} of ${budget:,.2f} spent", EndKind.BUDGET_REACHED)
        if spent >= WARN_AT * budget:
            projected = "" if rest_s is None else f"; ${with_end(rest_s):,.2f} in all as it goes"
            self._tell("budget", budget, f"${spent:,.2f} of ${budget:,.2f} are spent{projected}")
        return None

    def _write(self, told: dict[str, float | None]) -> None:
        """Whole or not at all, but not flushed to the disk: it is written anew in a moment."""
        path = self._past.run_dir.path / SPENT_FILE
        with contextlib.suppress(OSError):
            temporary = path.with_name(f".{SPENT_FILE}")
            temporary.write_text(json.dumps(told))
            os.replace(temporary, path)

    def _num_saves(self) -> int:
        return sum(event.get("event") == EventKind.CHECKPOINT_SAVED for event in self._past.run_dir.read_events())

    def _tell(self, limit: str, of: float, reason: str) -> None:
        if (limit, of) not in self._warned:
            self._warned.add((limit, of))
            self._warn(limit=limit, of=of, reason=reason)
