"""Exit codes of the trainer, and the errors that carry them. Knows nothing of torch or of files."""

from __future__ import annotations

import os
import sys
from enum import IntEnum
from typing import NoReturn


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    BAD_INPUT = 64
    """Bad specification or data: never retried."""
    PREEMPTED = 75
    """Stopped on request with everything committed: start again to go on."""


class BadInput(Exception):
    """The job or its data is wrong; the message says what, where, why and what next in a line or two."""


class Preempted(Exception):
    """The run was asked to stop and has committed its state."""


class TrainingFailed(Exception):
    """Training cannot go on (a loss that is not finite, a save that failed); the message is for a person."""


def leave(code: int) -> NoReturn:
    """End the process now that all is written and closed: taking torch apart module by module would only cost a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
