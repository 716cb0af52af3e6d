"""Errors that end a command with a message for a person and an exit code. Refuses to know what raised them."""

from __future__ import annotations

import errno
import os

from launcher.runs.states import EndReason


class LauncherError(Exception):
    """A message of one or two lines: what, where, why, what next. `reason` decides the exit code."""

    reason: EndReason = EndReason.FAILED


class BadUsage(LauncherError):
    """The command or the job asks for something that cannot be: nothing was started."""

    reason = EndReason.BAD_SPECIFICATION


class BackendError(LauncherError):
    """The backend or its credentials failed; what the run itself does may be unknown."""

    reason = EndReason.BACKEND


class NoCapacity(LauncherError):
    """Nobody had the resources asked for; the message says what was tried."""

    reason = EndReason.NO_CAPACITY


class ReaderGone(LauncherError):
    """Whoever read standard output has enough (`dolphin logs | head`); there is nobody to tell."""

    reason = EndReason.DETACHED


BROKEN_FILES = (LauncherError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What looking at a run may end in once somebody, or a full disk, was at its files."""


def full_disk(error: OSError, where: object) -> str | None:
    """That the disk is full, of the error's own file or else of `where`; None where it is another error."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    is_told = error.errno is None and any(
        os.strerror(number) in str(error) for number in numbers
    )  # many in one, of shutil's
    if error.errno not in numbers and not is_told:
        return None
    return f"the disk of {error.filename2 or error.filename or where} is full; make room there, and try again"


def broken(error: BaseException) -> str:
    """Such an error for a person: dolphin's own as it is, any other with its kind."""
    return (
        str(error)
        if isinstance(error, LauncherError)
        else f"its files cannot be read ({type(error).__name__}: {error})"
    )
