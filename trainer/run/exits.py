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


INTERRUPTED = 130
"""Of a command that a person interrupted, as shells have it (128 + SIGINT); no run ends with it."""


class EndKind(StrEnum):
    """How a rank, an attempt or a start of the trainer ended; `state` of outcome.json."""

    DONE = "done"
    PREEMPTED = "preempted"
    BAD_INPUT = "bad_input"
    FAILED = "failed"


EXIT_CODES: dict[EndKind, ExitCode] = {
    EndKind.DONE: ExitCode.DONE,
    EndKind.PREEMPTED: ExitCode.PREEMPTED,
    EndKind.BAD_INPUT: ExitCode.BAD_INPUT,
    EndKind.FAILED: ExitCode.FAILED,
}


class BadInput(Exception):
    """The job or its data is wrong; the message says what, where, why and what next in a line or two."""


class Preempted(Exception):
    """The run was asked to stop and has committed its state."""


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
