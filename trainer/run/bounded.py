"""A bound on what a stranger's expression may cost: regular expressions, filters and templates that never end.

Counts processor time, so that a busy machine is no reason to stop. Refuses to know what is run.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class TookTooLong(BaseException):
    """It used more processor time than it was given. No `except Exception` on the way takes it for another error."""


@contextmanager
def cpu_seconds(limit_s: float) -> Iterator[None]:
    """Raise TookTooLong in the body once this process has used `limit_s` seconds of a processor in it.

    Python's regular expressions look at signals while they search, its interpreter between two steps. Only a main thread can
    be interrupted; elsewhere, and within another such bound, nothing is bounded anew.
    """
    is_ours = threading.current_thread() is threading.main_thread() and signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    if not is_ours:
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TookTooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s, 1.0)  # and again, for whatever swallowed the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
