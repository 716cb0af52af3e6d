"""Death on demand inside a save, for the tests that prove that it does no harm. Nothing happens unless asked for.

DOLPHIN_FAULT is `point@step` or `point@step/rank`, for example `mid-shard@6/1`: the process kills itself with SIGKILL
when that rank (0 where not given) reaches that point of the save at that step.
"""

from __future__ import annotations

import os
import signal
from typing import BinaryIO

VARIABLE = "DOLPHIN_FAULT"
POINTS = ("before-first-byte", "mid-shard", "after-shards", "mid-manifest", "after-manifest")
_ASKED = os.environ.get(VARIABLE)
if _ASKED is not None and _ASKED.partition("@")[0] not in POINTS:
    raise ValueError(
        f"{VARIABLE}={_ASKED}: no save comes to such a point, so nothing would die; there are {', '.join(POINTS)}"
    )


def is_asked() -> bool:
    return _ASKED is not None


def point(name: str, step: int, rank: int) -> None:
    """Die here if that was asked for."""
    if _ASKED is not None and _ASKED in (f"{name}@{step}/{rank}", f"{name}@{step}" if rank == 0 else ""):
        os.kill(os.getpid(), signal.SIGKILL)


class CutHandle:
    """A file that reaches the point mid-shard after `num_bytes`, with what was written so far on the disk."""

    def __init__(self, handle: BinaryIO, num_bytes: int, step: int, rank: int) -> None:
        self._handle, self._left, self._step, self._rank = handle, num_bytes, step, rank

    def write(self, data: memoryview) -> int:
        written = self._handle.write(data[: self._left] if self._left > 0 else data)
        self._left -= written
        if self._left <= 0:
            point("mid-shard", self._step, self._rank)
        return written
