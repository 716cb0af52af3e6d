"""Being asked to stop or to save: signals, the files STOP and SAVE, and the supervisor's word, as one flag per rank.

Owns what counts as a request and when a rank leaves at once. Refuses to know torch: the loop joins the ranks' flags
with one all-reduce a step, so that all of them stop at the same step boundary.

Who asks:
- SIGTERM or SIGINT to a rank, however it came. The handler only notes it.
- the supervisor, through `attempts/N/stop.json` (a signal to it, a spot notice, a file STOP);
- a person, with a file STOP or SAVE in the run folder; the first line of STOP may say why.

A second signal to a rank makes it leave at once, but only when it comes SECOND_SIGNAL_AFTER_S or more behind the first:
a scheduler that signals every process of a job also signals torchrun, which passes it on a moment later.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from trainer.run.exits import EndKind
from trainer.run.run_folder import SAVE_FILE, STOP_FILE, RunDir, write_atomic

SECOND_SIGNAL_AFTER_S = 3.0
POLL_EVERY_S = 1.0
LONGEST_REASON = 300
"""Characters of it that are read."""


@dataclass(frozen=True, slots=True)
class StopRequest:
    reason: str
    """For a person: `SIGTERM to rank 1`, `spot notice from AWS: terminate at ...`, `file STOP`."""
    limit: EndKind | None = None
    """The limit of the job's that asks: there is time to export what there is. None: somebody else does."""


def supervisor_request(attempt_dir: Path) -> Path:
    """The file in which the supervisor tells its ranks to stop."""
    return attempt_dir / "stop.json"


def ask_ranks_to_stop(attempt_dir: Path, request: StopRequest) -> None:
    """Called by the supervisor. The ranks see it within POLL_EVERY_S, or when they start."""
    write_atomic(supervisor_request(attempt_dir), json.dumps({**asdict(request), "time": time.time()}))


def why_file_stop(path: Path) -> str | None:
    """Why a file STOP asks for a stop: its first line, where whoever wrote it said so. None where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            line = file.readline(LONGEST_REASON).strip()
    except FileNotFoundError:
        return None
    except OSError:  # it is there, whatever it is
        line = ""
    return line or "file STOP in the run folder"


class StopFlag:
    """One rank's view of whether it was asked to stop or to save. Cheap to ask at every step.

        stop.requested is not None   -> all-reduce(MAX) -> all save, then raise Preempted
        stop.save_requested          -> all-reduce(MAX) -> all save, then every rank calls stop.saved()

    `leave_at_once` is called from the signal handler on a second signal and must not return.
    """

    def __init__(
        self,
        run_dir: str | Path,
        attempt: int,
        rank: int,
        *,
        leave_at_once: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        run = RunDir(run_dir)
        self._stop_file = run.path / STOP_FILE
        self._save_file = run.path / SAVE_FILE
        self._supervisor_file = supervisor_request(run.attempt_dir(attempt))
        self._rank = rank
        self._leave_at_once = leave_at_once
        self._clock = clock
        self._request: StopRequest | None = None
        self._save = False
        self._signalled_at: float | None = None
        self._next_poll = -float("inf")

    def install(self) -> None:
        """Handle SIGTERM and SIGINT from here on. Main thread only; call it before anything slow is imported."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    @property
    def requested(self) -> StopRequest | None:
        """The first request to stop, or None. Looks at the files at most once in POLL_EVERY_S."""
        self._poll()
        return self._request

    @property
    def save_requested(self) -> bool:
        """Whether a checkpoint was asked for with a file SAVE."""
        self._poll()
        return self._save

    def saved(self) -> None:
        """All ranks, behind the save that was asked for: the wish is granted."""
        self._save_file.unlink(missing_ok=True)
        self._save = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now, name = self._clock(), signal.Signals(number).name
        if self._signalled_at is None:
            self._signalled_at = now
            if self._request is None:
                self._request = StopRequest(f"{name} to rank {self._rank}")
        elif now - self._signalled_at >= SECOND_SIGNAL_AFTER_S and self._leave_at_once is not None:
            self._leave_at_once(f"second signal ({name}) to rank {self._rank}")

    def _poll(self) -> None:
        now = self._clock()
        if now < self._next_poll:
            return
        self._next_poll = now + POLL_EVERY_S
        self._save = os.path.exists(self._save_file)
        if self._request is not None:
            return
        if os.path.exists(self._supervisor_file):
            asked = json.loads(self._supervisor_file.read_text())
            self._request = StopRequest(asked["reason"], EndKind(asked["limit"]) if asked["limit"] else None)
        elif (why := why_file_stop(self._stop_file)) is not None:
            self._request = StopRequest(why)
