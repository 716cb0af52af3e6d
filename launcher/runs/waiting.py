"""What this process waits for at this moment: backends say it here, and whoever has a terminal shows it.

Owns the answer to "what now?". Refuses to know who asks, and prints nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Wait:
    what: str
    """As one reads it behind "waiting for": `SkyPilot: asking for the managed jobs`."""
    since: float = field(default_factory=time.monotonic)
    phase: str = ""
    """How far the other side says that it is."""


_waits: list[Wait] = []
_lock = threading.Lock()


@contextlib.contextmanager
def waiting_for(what: str) -> Iterator[Wait]:
    """Around a request that may take long. The caller may set the wait's `phase` while it lasts, from any thread."""
    wait = Wait(what)
    with _lock:
        _waits.append(wait)
    try:
        yield wait
    finally:
        with _lock:
            _waits.remove(wait)


def awaited() -> Wait | None:
    """The wait that began last; None where nothing is waited for."""
    with _lock:
        return _waits[-1] if _waits else None
