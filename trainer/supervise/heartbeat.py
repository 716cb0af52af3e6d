"""Heartbeats: each rank says that it got on, after every micro batch and every part of a longer work, and the supervisor tells
a slow step from a hang.

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
SILENCE_FACTOR = 5.0
"""A rank may be silent for this many times the longest silence of a usual step of the run."""
ESTIMATE_FACTOR = 5.0
"""While no step is known, it may be silent for this many times the planned seconds of a whole step."""
BUSY_FACTOR = 12.0
"""Loading, saving, evaluating and exporting may be silent for this many times the floor; so may a first step without a plan."""
MIN_STEPS = 3
"""Steps after which the run's own silences are known."""
RECORD_BYTES = 256


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank last said. Times are seconds of the machine's monotonic clock, which all its processes share."""

    pid: int
    step: int
    at: float
    silence_s: float | None
    """Median, over the last steps, of the longest time without a beat within a step; None before MIN_STEPS of them."""
    busy: str | None
    """What takes its time legitimately; None while stepping."""


def heartbeat_path(attempt_dir: Path, rank: int) -> Path:
    return attempt_dir / f"heartbeat-{rank}"


class Heartbeat:
    """One rank's heartbeat. It is busy, first `starting`, until the first `step`. Only the thread that works may beat."""

    def __init__(self, attempt_dir: Path, rank: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        attempt_dir.mkdir(parents=True, exist_ok=True)
        self._file = os.open(heartbeat_path(attempt_dir, rank), os.O_WRONLY | os.O_CREAT, 0o644)
        self._clock = clock
        self._silences: deque[float] = deque(maxlen=50)
        self._longest = 0.0
        self._busy: str | None = "starting"
        self._is_stepping = False
        self._last_at = clock()
        self.steps_done = 0
        """Completed optimizer steps of the run, as last told."""
        self._write()

    def enter(self, what: str) -> None:
        """Before the first step: what this rank does now."""
        self._busy = what
        self._write()

    def alive(self) -> None:
        """Something is done that takes its time: a micro batch, a batch of the evaluation, a file of a save."""
        if self._busy is None:
            self._longest = max(self._longest, self._clock() - self._last_at)
        self._write()

    def step(self, step: int) -> None:
        """Step `step` is done; call it with the resumed step before the first one, too."""
        if self._is_stepping:
            self._longest = max(self._longest, self._clock() - self._last_at)
            if step > self.steps_done:
                self._silences.append(self._longest)
        else:
            self._is_stepping, self._busy = True, None
        self._longest = 0.0
        self.steps_done = step
        self._write()

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Around what legitimately takes longer than a step: `with heartbeat.busy("evaluating")`. May nest."""
        self.alive()
        before, self._busy = self._busy, what
        self._write()
        try:
            yield
        finally:
            self._busy = before
            self._write()

    def close(self) -> None:
        os.close(self._file)

    def _write(self) -> None:
        self._last_at = self._clock()
        silence_s = statistics.median(self._silences) if len(self._silences) >= MIN_STEPS else None
        beat = Beat(os.getpid(), self.steps_done, self._last_at, silence_s, self._busy and self._busy[:80])
        with suppress(OSError):  # a full disk: the others see an older beat, and the save or the end says why
            os.pwrite(self._file, json.dumps(asdict(beat)).ljust(RECORD_BYTES).encode(), 0)


def read_heartbeat(attempt_dir: Path, rank: int) -> Beat | None:
    """The rank's last record; None before the first one."""
    try:
        return Beat(**json.loads(heartbeat_path(attempt_dir, rank).read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def hang(
    beats: Mapping[int, Beat], now: float, floor_s: float = DEFAULT_FLOOR_S, estimate_s: float | None = None
) -> str | None:
    """Why the ranks that are still at work count as hung; None where they do not.

    The limit is on the silence between two beats, not on a step. While any rank is busy, all are held to BUSY_FACTOR
    floors, and a beat of it counts for those that wait for it. Else it is the larger of `floor_s` and SILENCE_FACTOR usual
    silences; before those are known ESTIMATE_FACTOR times `estimate_s`, the planned seconds of a step.
    """
    if not beats:
        return None
    busy = [beat.at for beat in beats.values() if beat.busy]
    known = [beat.silence_s for beat in beats.values() if beat.silence_s is not None]
    if busy or not (known or estimate_s):
        limit_s = BUSY_FACTOR * floor_s
    else:
        limit_s = max(floor_s, SILENCE_FACTOR * max(known) if known else ESTIMATE_FACTOR * (estimate_s or 0.0))
    rank, latest = max(beats.items(), key=lambda item: now - item[1].at)
    silent_s = now - max([latest.at, *busy])
    if silent_s < limit_s:
        return None
    doing = f"busy {latest.busy}" if latest.busy else f"in step {latest.step + 1}"
    usual = f"; it is silent for {latest.silence_s:.1f} s at most in a usual step" if latest.silence_s else ""
    return f"rank {rank} made no progress for {silent_s:.0f} s ({doing}, limit {limit_s:.0f} s{usual})"
