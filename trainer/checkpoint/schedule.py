"""SaveSchedule: whether a save is due now, by the rule of trainer.run.save_interval. Owns the clock and the last save."""

from __future__ import annotations

import time

from trainer.run import save_interval
from trainer.run.run_folder import EventKind, RunDir
from trainer.run.settings.checkpoint import CheckpointSpec


class SaveSchedule:
    """Knows the last save by being told. Steps 0 and `total_steps` are never due: the loop saves the last one itself."""

    def __init__(
        self, settings: CheckpointSpec, run: RunDir, attempt: int, total_steps: int, steps_per_epoch: int
    ) -> None:
        self._settings, self._attempt = settings, attempt
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        starts = [
            event["time"]
            for event in run.read_events()
            if event.get("event") == EventKind.ATTEMPT_STARTED.value and isinstance(event.get("time"), int | float)
        ]
        self._watched_since = float(min(starts, default=time.time()))
        self._saved_step = 0
        self._saved_at_s = time.monotonic()

    def saved(self, step: int) -> None:
        """A save was begun, or the run was resumed, at `step`."""
        self._saved_step = step
        self._saved_at_s = time.monotonic()

    def is_due_by_step(self, step: int) -> bool:
        """The same on every rank."""
        if self._is_settled(step):
            return False
        return save_interval.is_due_by_step(self._settings, step, self._steps_per_epoch)

    def is_due_by_clock(self, step: int, blocked_s: float | None, whole_s: float | None) -> bool:
        """This rank's own opinion. `blocked_s` and `whole_s` are the last save's cost, None before the first."""
        if self._is_settled(step):
            return False
        rate = self._preemptions_per_day()
        interval_s = save_interval.clock_interval_s(self._settings, blocked_s, whole_s, rate)
        return interval_s is not None and time.monotonic() - self._saved_at_s >= interval_s

    def _is_settled(self, step: int) -> bool:
        return step in (0, self._saved_step, self._total_steps)

    def _preemptions_per_day(self) -> float:
        """What was stated, corrected by what this run has seen."""
        watched_s = max(0.0, time.time() - self._watched_since)
        return save_interval.preemptions_per_day(self._settings.preemptions_per_day, self._attempt - 1, watched_s)
