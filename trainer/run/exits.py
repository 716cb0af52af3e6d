"""How the trainer ends: kinds of end, their exit codes, and the errors that stand for them. Knows no torch and no files.

The launcher's own exit codes are in launcher.runs.states.
"""

from __future__ import annotations

import os
import sys
from enum import IntEnum, StrEnum
from typing import NoReturn


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    BAD_INPUT = 64
    """Bad specification or data: never retried."""
    PREEMPTED = 75
    """Stopped on request with everything committed: start again to go on."""
    BUDGET_REACHED = 76
    """Saved, exported and ended before the budget was spent: nobody starts it again by itself."""
    DEADLINE_REACHED = 77


INTERRUPTED = 130
"""Of a command that a person interrupted, as shells have it (128 + SIGINT); no run ends with it."""


class EndKind(StrEnum):
    """How a rank, an attempt or a start of the trainer ended; `state` of outcome.json."""

    DONE = "done"
    PREEMPTED = "preempted"
    BAD_INPUT = "bad_input"
    FAILED = "failed"
    BUDGET_REACHED = "budget_reached"
    """Saved and exported as far as it was: goes on with a larger budget."""
    DEADLINE_REACHED = "deadline_reached"


LIMITS = (EndKind.BUDGET_REACHED, EndKind.DEADLINE_REACHED)
"""Ends that the job's own limits made."""
EXIT_CODES: dict[EndKind, ExitCode] = {
    EndKind.DONE: ExitCode.DONE,
    EndKind.PREEMPTED: ExitCode.PREEMPTED,
    EndKind.BAD_INPUT: ExitCode.BAD_INPUT,
    EndKind.FAILED: ExitCode.FAILED,
    EndKind.BUDGET_REACHED: ExitCode.BUDGET_REACHED,
    EndKind.DEADLINE_REACHED: ExitCode.DEADLINE_REACHED,
}


class BadInput(Exception):
    """The job or its data is wrong; the message says what, where, why and what next in a line or two."""


class Preempted(Exception):
    """The run was asked to stop and has committed its state."""


class LimitReached(Exception):
    """The run's budget or deadline is near: it has committed its state, and exported what it has."""

    def __init__(self, kind: EndKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StoreGone(Preempted):
    """The checkpoint store does not answer for long: nothing is wrong with the run, which goes on from the last checkpoint there
    once it does."""


class TrainingFailed(Exception):
    """Training cannot go on (a loss that is not finite, a save that failed); the message is for a person."""


class NoContact(Exception):
    """The ranks cannot reach each other: the first thing that they sent did not arrive, or not as it was sent."""


def leave(code: int) -> NoReturn:
    """End the process now that all is written and closed: taking torch apart module by module would only cost a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
