"""A bound on what a stranger's expression may cost: regular expressions, filters and templates that never end.

Counts processor time, so that a busy machine is no reason to stop, and memory beyond what the process had. Refuses to know what
is run.
"""

from __future__ import annotations

import resource
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


@contextmanager
def memory_bytes(limit_bytes: int) -> Iterator[None]:
    """Let an allocation in the body fail with MemoryError once this process has `limit_bytes` more of address space than now.

    Nothing is bounded where the system does not say how much it has (no /proc), or allows less already.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with open("/proc/self/statm", "rb") as handle:
            wanted = int(handle.read().split()[0]) * resource.getpagesize() + limit_bytes
    except OSError:
        wanted = resource.RLIM_INFINITY
    is_tighter = wanted != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or wanted < soft)
    if not is_tighter:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
