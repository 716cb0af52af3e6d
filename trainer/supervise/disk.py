"""A disk without room: found, named, and not in the way of the run's last words.

Owns the few kilobytes that are kept back for them. Refuses to know who filled it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

RESERVE_FILE = ".reserve"
RESERVE_BYTES = 16 << 10
"""Of the run folder: outcome.json, the last events and the ranks' last words fit in."""
_FULL_BYTES = 64 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


def reserve(folder: Path) -> None:
    """Keep room back; as well as it goes."""
    try:
        with open(folder / RESERVE_FILE, "wb") as handle:
            handle.write(os.urandom(RESERVE_BYTES))  # a file system that compresses keeps this much too
            handle.flush()
            os.fsync(handle.fileno())
    except OSError:
        release(folder)


def release(folder: Path) -> None:
    """Give the room back, for the last words."""
    try:
        (folder / RESERVE_FILE).unlink(missing_ok=True)
    except OSError:
        return


def full(folders: Iterable[str | Path]) -> str | None:
    """`the disk of FOLDER is full` for the first of `folders` of which that is so; None where there is room."""
    for folder in folders:
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        if found.f_bavail * found.f_frsize < _FULL_BYTES or (found.f_files and not found.f_favail):
            return f"the disk of {folder} is full"
    return None


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk has no room; libraries written in Rust and C++ say it in words alone."""
    return getattr(error, "errno", None) in _FULL or "No space left on device" in str(error)


def explain(error: BaseException) -> str:
    """Such an error as one line."""
    where = getattr(error, "filename", None)
    return (
        f"the disk of {where} is full; make room, then `dolphin resume` goes on"
        if where
        else (f"a disk is full ({' '.join(str(error).split())[:300]}); make room, then `dolphin resume` goes on")
    )
