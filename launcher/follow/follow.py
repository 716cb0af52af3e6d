"""Following a run from any moment to its end: log, story and progress, over lost connections.

Owns the loop and its patience. Refuses to start or stop a run: whoever stops following leaves it as it is.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from launcher.backends.base import BEGINNING, Backend, BackendStatus, Cursor, LogChunk
from launcher.follow.readers import JsonLines, ViewReader
from launcher.follow.run_view import RunView
from launcher.follow.screen import Screen
from launcher.runs.errors import BackendError, BadUsage
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState, is_over
from launcher.units import parse_seconds, seconds
from trainer.run.log_lines import Kind, subject_of, subject_of_record
from trainer.run.run_folder import EVENTS_FILE, METRICS_FILE

_MAX_PAUSE_S = 30.0
_PATIENCE_S = 900.0
"""A backend that has not answered for this long is given up on; the run may go on."""

_NUM_PAST_LINES = 5
"""Of the story before the following began, this many."""

_WAITING = {RunState.QUEUED, RunState.PROVISIONING, RunState.RECOVERING, RunState.STOPPING}
"""States worth a line when they begin: the events are silent meanwhile."""


@dataclass(frozen=True, slots=True)
class LogFrom:
    """Where the shown log begins: all of it, after a place in it, its last lines, or what is younger than a time."""

    tail: int | None = None
    since: datetime | None = None
    after: Cursor = BEGINNING


def follow(
    backend: Backend,
    record: RunRecord,
    screen: Screen,
    start: LogFrom = LogFrom(),
    reader: ViewReader | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[BackendStatus, RunView]:
    """Show the run until it is over; returns how it ended. BackendError where the backend is gone for too long.

    `reader` has read what need not be told; without one, the end of the story so far is told first.
    Many parameters: tests have a clock of their own.
    """
    cursor = _show_past(backend, record, screen, start)
    is_first, previous = reader is None, None
    reader = reader or ViewReader(backend, record)
    failing_since: float | None = None
    pause_s = backend.poll_s
    while True:
        try:
            status = backend.status(record)  # before the log: what the dying run wrote is then in what follows
            for chunk in backend.logs(record, cursor):
                screen.log(chunk.text)
                cursor = chunk.cursor
            lines = reader.read()
        except BackendError as error:
            now = clock()
            if failing_since is None:
                failing_since = now
                screen.say(f"no answer from {backend.name} ({error}); the run is not touched, trying again")
            if now - failing_since > _PATIENCE_S:
                raise BackendError(
                    f"{record.run_id}: no answer for {seconds(now - failing_since)} ({error}); "
                    f"the run may go on: `dolphin logs {record.run_id}` later"
                ) from None
            sleep(pause_s)
            pause_s = min(_MAX_PAUSE_S, pause_s * 2)
            continue
        if failing_since is not None:
            screen.say(f"{backend.name} answers again")
        failing_since, pause_s = None, backend.poll_s
        if status.state != previous and status.state in _WAITING:
            screen.say(f"{status.state.value}{f': {status.detail}' if status.detail else ''}")
        previous = status.state
        for line in lines[-_NUM_PAST_LINES:] if is_first else lines:
            screen.say(line)
        is_first = False
        screen.progress(reader.view)
        if is_over(status.state):
            return status, reader.view
        sleep(backend.poll_s)


def show_log(backend: Backend, record: RunRecord, screen: Screen, start: LogFrom = LogFrom()) -> None:
    """The log up to now."""
    _show_past(backend, record, screen, start)


def end_of_log(backend: Backend, record: RunRecord) -> Cursor:
    """Behind everything that is in the log now."""
    cursor = BEGINNING
    for chunk in backend.logs(record):
        cursor = chunk.cursor
    return cursor


def _show_past(backend: Backend, record: RunRecord, screen: Screen, start: LogFrom) -> Cursor:
    if start.tail is None and start.since is None:
        cursor = start.after
        for chunk in backend.logs(record, cursor):
            screen.log(chunk.text)
            cursor = chunk.cursor
        return cursor
    lines: deque[str] = deque(maxlen=None if start.tail is None else min(start.tail, sys.maxsize))
    cursor, filter_ = BEGINNING, _SinceFilter(start.since, _KnownTimes(backend, record) if start.since else None)
    for chunk in backend.logs(record):
        lines.extend(filter_.keep(chunk))
        cursor = chunk.cursor
    filter_.check(record)
    if lines:
        screen.log("".join(lines))
    return cursor


class _KnownTimes:
    """When the lines about steps were written, as metrics.jsonl has it; a step that was trained again has a time for each."""

    def __init__(self, backend: Backend, record: RunRecord) -> None:
        first = next(iter(JsonLines(backend, record, EVENTS_FILE).read()), {})
        self.start: float | None = first.get("time")
        """Of the log, as the run's first event has it."""
        self._times: dict[tuple[int, Kind], deque[float]] = {}
        for metric in JsonLines(backend, record, METRICS_FILE).read():
            if "time" in metric:
                self._times.setdefault(subject_of_record(metric), deque()).append(metric["time"])

    def of(self, line: str) -> float | None:
        """The time of the next line in the log; call it for each, in order."""
        subject = subject_of(line)
        times = self._times.get(subject) if subject is not None else None
        return times.popleft() if times else None


class _SinceFilter:
    """Lines not older than a time, by the backend's clock where it has one, else by the time a line begins with or that the
    run's records have for it; a line without one belongs to the line before it."""

    _STAMP = re.compile(r"\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:[.,]\d+)?(Z|[+-]\d\d:?\d\d)?")

    def __init__(self, since: datetime | None, known: _KnownTimes | None) -> None:
        self._since, self._known = since, known
        start = known.start if known is not None else None
        self._is_young = since is None or (start is not None and datetime.fromtimestamp(start, UTC) >= since)
        self._num_lines = 0
        self._has_times = since is None or start is not None

    def keep(self, chunk: LogChunk) -> list[str]:
        kept = []
        for line in io.StringIO(chunk.text, newline="\n"):  # not splitlines, which parts at more than newlines
            self._num_lines += 1
            at = self._time_of(line, chunk)
            if at is not None and self._since is not None:
                self._has_times = True
                self._is_young = at >= self._since
            if self._is_young:
                kept.append(line)
        return kept

    def check(self, record: RunRecord) -> None:
        if self._num_lines and not self._has_times:
            raise BadUsage(f"--since: the log of {record.run_id} holds no times; use --tail")

    def _time_of(self, line: str, chunk: LogChunk) -> datetime | None:
        if chunk.time is not None:
            return datetime.fromtimestamp(chunk.time, UTC)
        known = self._known.of(line) if self._known is not None else None
        if known is not None:
            return datetime.fromtimestamp(known, UTC)
        match = self._STAMP.match(line)
        if match is None:
            return None
        try:
            at = datetime.fromisoformat(match[1] + (match[2] or ""))
        except ValueError:  # looks like a time, and is in the 13th month
            return None
        return at if at.tzinfo else at.replace(tzinfo=UTC)


def parse_age(text: str) -> datetime:
    """The moment `10m`, `90s`, `2h` or `1d` ago. BadUsage for anything else."""
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_seconds(text))
    except ValueError as error:
        raise BadUsage(f"--since {text}: is no age; {error}") from None
    except OverflowError:
        raise BadUsage(f"--since {text}: lies before all calendars; leave it out to see the whole log") from None
