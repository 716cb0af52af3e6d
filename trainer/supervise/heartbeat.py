"""Heartbeats: each rank says what it last did, and the supervisor tells a slow step from a hang.

Owns the heartbeat file `attempts/N/heartbeat-R` (one JSON record, overwritten in place) and the limit that makes a
silence a hang. Refuses to know torch and what is done about a hang.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

DEFAULT_FLOOR_S = 600
STEP_FACTOR = 20.0
"""A step may take this many times the run's median step."""
BUSY_FACTOR = 12.0
"""Loading, saving, evaluating and exporting may be silent for this many times the floor."""
RECORD_BYTES = 256


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank last said. Times are seconds of the machine's monotonic clock, which all its processes share."""

    pid: int
    step: int
    at: float
    typical_s: float | None
    """Median of the last steps; None before there are three."""
    busy: str | None
    """What takes its time legitimately; None while stepping."""


def heartbeat_path(attempt_dir: Path, rank: int) -> Path:
    return attempt_dir / f"heartbeat-{rank}"


class Heartbeat:
    """One rank's heartbeat. It is busy `starting` until the first `step`."""

    def __init__(self, attempt_dir: Path, rank: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        attempt_dir.mkdir(parents=True, exist_ok=True)
        self._file = os.open(heartbeat_path(attempt_dir, rank), os.O_WRONLY | os.O_CREAT, 0o644)
        self._clock = clock
        self._durations: deque[float] = deque(maxlen=50)
        self._busy: str | None = "starting"
        self._last_step_at: float | None = None
        self._busy_since_step = 0.0
        self.steps_done = 0
        """Completed optimizer steps of the run, as last told."""
        self._write()

    def step(self, step: int) -> None:
        """Step `step` is done; call it with the resumed step before the first one, too."""
        now = self._clock()
        if self._last_step_at is not None and step > self.steps_done:
            self._durations.append(max(0.0, now - self._last_step_at - self._busy_since_step))
        self._last_step_at, self._busy_since_step = now, 0.0
        self.steps_done = step
        if self._busy == "starting":
            self._busy = None
        self._write()

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Around what legitimately takes longer than a step: `with heartbeat.busy("evaluating")`. May nest."""
        before, began = self._busy, self._clock()
        self._busy = what
        self._write()
        try:
            yield
        finally:
            if before is None:
                self._busy_since_step += self._clock() - began
            self._busy = before
            self._write()

    def close(self) -> None:
        os.close(self._file)

    def _write(self) -> None:
        typical_s = statistics.median(self._durations) if len(self._durations) >= 3 else None
        beat = Beat(os.getpid(), self.steps_done, self._clock(), typical_s, self._busy and self._busy[:80])
        with suppress(OSError):  # a full disk: the others see an older beat, and the save or the end says why
            os.pwrite(self._file, json.dumps(asdict(beat)).ljust(RECORD_BYTES).encode(), 0)


def read_heartbeat(attempt_dir: Path, rank: int) -> Beat | None:
    """The rank's last record; None before the first one."""
    try:
        return Beat(**json.loads(heartbeat_path(attempt_dir, rank).read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def hang(beats: Mapping[int, Beat], now: float, floor_s: float = DEFAULT_FLOOR_S) -> str | None:
    """Why the ranks that are still at work count as hung; None where they do not.

    The limit is the larger of `floor_s` and STEP_FACTOR median steps. While any rank is busy, all are held to
    BUSY_FACTOR floors instead: the others wait for it.
    """
    if not beats:
        return None
    if any(beat.busy for beat in beats.values()):
        limit_s = BUSY_FACTOR * floor_s
    else:
        typical = max((beat.typical_s or 0.0 for beat in beats.values()), default=0.0)
        limit_s = max(floor_s, STEP_FACTOR * typical)
    rank, latest = max(beats.items(), key=lambda item: now - item[1].at)
    silent_s = now - latest.at
    if silent_s < limit_s:
        return None
    doing = f"busy {latest.busy}" if latest.busy else f"in step {latest.step + 1}"
    usual = f"; a step usually takes {latest.typical_s:.1f} s" if latest.typical_s else ""
    return f"rank {rank} made no progress for {silent_s:.0f} s ({doing}, limit {limit_s:.0f} s{usual})"
