"""A file system that fails under a real program: Python tells its audit hooks of every file that it is about to touch, and
what a hook raises is what the caller gets, as from the kernel."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EVENTS = ("open", "os.scandir", "os.listdir", "os.rename", "os.remove", "os.mkdir")
_faults: list[tuple[str, int]] = []
"""(folder, errno) of the touches that are still to fail, in order."""


def _fail(event: str, arguments: tuple[Any, ...]) -> None:
    if _faults and event in _EVENTS and isinstance(arguments[0], str | os.PathLike):
        folder, number = _faults[0]
        if os.fspath(arguments[0]).startswith(folder):
            _faults.pop(0)
            raise OSError(number, os.strerror(number), os.fspath(arguments[0]))


@contextlib.contextmanager
def away(folder: Path, *numbers: int) -> Iterator[list[tuple[str, int]]]:
    """The next touches of `folder` fail with these error numbers; yields those that are still to come."""
    if not _HOOKED:
        sys.addaudithook(_fail)  # for good: there is no way to take one out
        _HOOKED.append(True)
    _faults[:] = [(str(folder), number) for number in numbers]
    try:
        yield _faults
    finally:
        _faults.clear()


_HOOKED: list[bool] = []
