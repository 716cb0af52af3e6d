"""Says on standard error what a command waits for, where that takes long: a person who sees nothing presses Ctrl-C.

Owns when a line is due. Not for what follows a run, which has a screen of its own.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from launcher.follow import screen
from launcher.runs.waiting import Wait, awaited
from launcher.units import seconds

FIRST_S = 3.0
"""Nothing is said of a wait that is shorter."""
AGAIN_S = 30.0
_LOOK_S = 0.5
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Teller:
    """Which line is due: one where a wait has become long, one for each phase of it, and one now and then."""

    def __init__(self) -> None:
        self._told: tuple[str, str] | None = None
        self._told_at = 0.0

    def line(self, wait: Wait | None, now: float) -> str | None:
        if wait is None or now - wait.since < FIRST_S:
            return None
        saying = (wait.what, wait.phase)
        if saying == self._told and now - self._told_at < AGAIN_S:
            return None
        self._told, self._told_at = saying, now
        phase = f": {wait.phase}" if wait.phase else ""
        return f"  waiting for {wait.what}{phase} ({seconds(now - wait.since)})"


def patiently(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, with lines about what it waits for while it runs."""

    @functools.wraps(function)
    def wrapped(*arguments: _P.args, **options: _P.kwargs) -> _T:
        is_over = threading.Event()
        thread = threading.Thread(target=_tell, args=(is_over,), daemon=True)
        thread.start()
        try:
            return function(*arguments, **options)
        finally:
            is_over.set()
            thread.join()

    return wrapped


def _tell(is_over: threading.Event) -> None:
    teller = Teller()
    while not is_over.wait(_LOOK_S):
        line = teller.line(awaited(), time.monotonic())
        if line is not None:
            screen.say(line)
