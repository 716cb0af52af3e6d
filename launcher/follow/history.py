"""History: what a run's events, metrics and nodes say of its whole life, as series and stretches of time. Pure.

Fed with whole lines in the order they were written, across attempts. Refuses to know where they came from and how they are drawn.
A field of another kind than it should be counts as not there: a newer trainer or a damaged file must not cost the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from launcher.backends.base import NodeAttempt
from trainer.run.measures import COLUMNS, FIRST
from trainer.run.run_folder import EventKind

Point = tuple[int, float]
"""Step and value."""


@dataclass(slots=True)
class Save:
    at: float
    step: int
    size_bytes: float | None
    seconds: float | None


@dataclass(slots=True)
class Attempt:
    """One start of the trainer. Times in seconds since the epoch."""

    number: int
    started_at: float
    ended_at: float
    """The last that was heard of it."""
    ranks: str = ""
    resumed_step: int | None = None
    reached_step: int | None = None
    lost_steps: int | None = None
    """Steps of the attempt before that are computed again."""
    end: str = ""
    """Why it ended; empty where nothing said so."""
    phases: list[tuple[float, str]] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Interruption:
    """What the end of one attempt cost: from its last step until the run was past that step again."""

    attempt: int
    why: str
    step: int | None
    lost_steps: int | None
    seconds: float | None
    """None where the run has not been there again."""
    usd: float | None
    """What nodes cost meanwhile; None where no price is known."""


@dataclass(slots=True)
class History:
    attempts: list[Attempt] = field(default_factory=list)
    steps: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """The line of every step of training; a step that was computed again keeps the last."""
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Likewise of every evaluation."""
    total_steps: int | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    """What the trainer counted: sequences, conversations, tokens, parameters."""
    refused: list[str] = field(default_factory=list)
    """Checkpoints that did not verify, each with why."""
    _step_times: list[tuple[float, int, int]] = field(default_factory=list)
    """Time, attempt and step of every line of training, those computed again included."""
    _num_settled: int = 0

    def add_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        for line in lines:
            step = line.get("step")
            if not isinstance(step, int) or isinstance(step, bool):
                continue
            if "loss" in line:
                self.steps[step] = line
                at, attempt = line.get("time"), line.get("attempt")
                if isinstance(at, int | float) and isinstance(attempt, int):
                    self._step_times.append((float(at), attempt, step))
            elif any(name not in COLUMNS and number(value) is not None for name, value in line.items()):
                self.evaluations.setdefault(step, {}).update(line)

    def add_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        for event in events:
            at = event.get("time")
            if isinstance(at, int | float):
                self._add_event(float(at), event)

    def _add_event(self, at: float, event: Mapping[str, Any]) -> None:
        kind, step = event.get("event"), event.get("step")
        if kind == EventKind.ATTEMPT_STARTED:
            stated = _whole(event.get("attempt"))
            self.attempts.append(Attempt(stated or len(self.attempts) + 1, at, at, _ranks(event)))
        if not self.attempts:
            return
        attempt = self.attempts[-1]
        attempt.ended_at = max(attempt.ended_at, at)
        match kind:
            case EventKind.PHASE if isinstance(event.get("phase"), str):
                attempt.phases.append((at, event["phase"]))
            case EventKind.PLAN:
                self.plan = dict(event)
                self.total_steps = _whole(event.get("total_steps")) or self.total_steps
            case EventKind.RESUMED:
                attempt.resumed_step, attempt.lost_steps = _whole(step), _whole(event.get("lost_steps"))
                self.total_steps = _whole(event.get("total_steps")) or self.total_steps
            case EventKind.CHECKPOINT_REFUSED:
                self.refused.append(f"{event.get('checkpoint')}: {event.get('reason')}")
            case EventKind.CHECKPOINT_SAVED if isinstance(step, int):
                attempt.saves.append(Save(at, step, number(event.get("size_bytes")), number(event.get("seconds"))))
            case EventKind.PREEMPTED | EventKind.RESTARTING | EventKind.STOP_REQUESTED:
                attempt.end = str(event.get("reason") or kind)
            case EventKind.FINISHED:
                code = event.get("exit_code")
                attempt.end = str(event.get("reason") or ("finished" if code == 0 else f"ended with {code}"))

    def settle(self) -> None:
        """Give every attempt the steps that it made. Called once what there is was added, and again after more."""
        by_number = {attempt.number: attempt for attempt in self.attempts}
        for at, number_of, step in self._step_times[self._num_settled :]:
            attempt = by_number.get(number_of)
            if attempt is not None:
                attempt.ended_at = max(attempt.ended_at, at)
                attempt.reached_step = max(step, attempt.reached_step or 0)
        self._num_settled = len(self._step_times)

    @property
    def started_at(self) -> float | None:
        return self.attempts[0].started_at if self.attempts else None

    @property
    def ended_at(self) -> float | None:
        return max((attempt.ended_at for attempt in self.attempts), default=None)

    def interruptions(self, nodes: Sequence[NodeAttempt] = ()) -> list[Interruption]:
        """One for each attempt that another one followed."""
        found = []
        for before, after in zip(self.attempts, self.attempts[1:], strict=False):
            reached, left_at = before.reached_step, self._left_at(before)
            back = self._passed_at(after.started_at, reached)
            lost = after.lost_steps
            if lost is None and reached is not None and after.resumed_step is not None:
                lost = max(0, reached - after.resumed_step)
            found.append(
                Interruption(
                    before.number,
                    before.end or "ended without a word",
                    reached,
                    lost,
                    None if back is None else back - left_at,
                    None if back is None else _usd_between(nodes, left_at, back),
                )
            )
        return found

    def _left_at(self, attempt: Attempt) -> float:
        """When its last step was made; its last word where it made none."""
        times = [at for at, number_of, _ in self._step_times if number_of == attempt.number]
        return max(times, default=attempt.ended_at)

    def _passed_at(self, after: float, step: int | None) -> float | None:
        return next((at for at, _, reached in self._step_times if at >= after and reached > (step or 0)), None)

    def series(self, name: str) -> list[Point]:
        """A number of every step, in order; nan and infinity are kept, what is no number is not."""
        return _series(self.steps, name)

    def evaluated(self, name: str) -> list[Point]:
        return _series(self.evaluations, name)

    def evaluation_names(self) -> list[str]:
        """Numbers that evaluations gave: the losses first, then the scores, then what else was measured. Of the first set, where sets
        have names, `eval_loss` and its kin are left out: NAME/loss is the same number."""
        names = dict.fromkeys(
            name
            for line in self.evaluations.values()
            for name, value in line.items()
            if name not in COLUMNS and number(value) is not None
        )
        if any(is_loss(name) and "/" in name for name in names):
            names = {name: None for name in names if not name.startswith(FIRST)}
        return sorted(names, key=lambda name: (not is_loss(name), "/" in name or name.startswith(FIRST)))

    def not_finite(self) -> list[int]:
        """Steps whose loss is no finite number."""
        return [step for step, value in self.series("loss") if not math.isfinite(value)]


def is_loss(name: str) -> bool:
    """Whether an evaluation's number is a validation set's loss."""
    return name == f"{FIRST}loss" or name.endswith(("/loss", "_loss"))


def label_of(name: str) -> str:
    """`validation loss` of eval_loss, `mine loss` of mine/loss, `exact match` of a score."""
    if name == f"{FIRST}loss":
        return "validation loss"
    return name.removeprefix(FIRST).replace("/", " ").replace("_", " ")


def number(value: Any) -> float | None:
    """A number as it may stand in a record, nan included; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value != value or abs(value) < 1e300 or math.isinf(value) else None


def thinned(points: Sequence[Point], num_buckets: int) -> list[Point]:
    """The first, the last, and at most two points a bucket: its lowest and its highest, so that a spike of one step still shows."""
    if len(points) <= 2 * num_buckets:
        return list(points)
    kept: list[Point] = []
    for i in range(num_buckets):
        bucket = points[i * len(points) // num_buckets : (i + 1) * len(points) // num_buckets]
        finite = [point for point in bucket if math.isfinite(point[1])]
        if len(finite) < len(bucket):
            kept.append(next(point for point in bucket if not math.isfinite(point[1])))
        if finite:
            kept += {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
    return sorted({points[0], *kept, points[-1]})


def smoothed(points: Sequence[Point], share: float = 0.02) -> list[Point]:
    """Exponential mean over about `share` of the points, corrected for its start as Adam's moments are."""
    keep, mean, weight, found = 1 - 1 / max(1.0, share * len(points)), 0.0, 0.0, []
    for step, value in points:
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
            found.append((step, mean / weight))
    return found


def _series(lines: Mapping[int, Mapping[str, Any]], name: str) -> list[Point]:
    steps = lines if all(map(int.__lt__, lines, islice(lines, 1, None))) else sorted(lines)  # mostly written in order
    found: list[Point] = []
    for step in steps:
        value = lines[step].get(name)
        if type(value) is not float:
            value = number(value)
        if value is not None:
            found.append((step, value))
    return found


def _usd_between(nodes: Sequence[NodeAttempt], start: float, end: float) -> float | None:
    if not nodes or any(node.price_usd_per_hour is None for node in nodes):
        return None
    spans = ((max(start, node.started_at), min(end, node.ended_at or end), node.price_usd_per_hour) for node in nodes)
    return sum(max(0.0, last - first) / 3600 * (price or 0.0) for first, last, price in spans)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None


def _ranks(event: Mapping[str, Any]) -> str:
    num = _whole(event.get("nproc"))
    if num is None:
        return ""
    return f"{num} {'GPU' if event.get('device') == 'cuda' else 'CPU rank'}{'' if num == 1 else 's'}"
