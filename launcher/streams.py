"""Standard input, output and error as a command needs them, also where they are closed, full or of another encoding.

A command must end as its work did, not as its output did: nothing of it goes where a closed stream's number was given to
another file, and no message that cannot be shown ends it. Needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

_STREAMS = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def mend() -> None:
    """Open what is closed on nothing, let messages fail in silence, and letters that an encoding lacks be escaped."""
    for number, name, mode in _STREAMS:
        if _is_closed(number):
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  (until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper) and (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout = Output(sys.stdout)
    sys.stderr = Messages(sys.stderr)


def discard_output() -> None:
    """Send standard output nowhere, so that the flush at the end of the process does not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class OutputBroken(OSError):
    """Standard output cannot be written: its disk is full. A reader who left is a BrokenPipeError, as ever."""


class _Stream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Output(_Stream):
    """Standard output whose errors can be told from those of other files."""

    def write(self, text: str) -> int:
        with _told_apart():
            return int(self._stream.write(text))

    def flush(self) -> None:
        with _told_apart():
            self._stream.flush()


class Messages(_Stream):
    """Standard error that cannot fail: there is nobody to tell of it."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def _told_apart() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputBroken(error.errno, error.strerror or str(error)) from None


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return getattr(sys, _STREAMS[number][1]) is None
