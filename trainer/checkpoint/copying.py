"""Copying: the part of a save for which the state must stay as it is. Owns who waits for it and for how long; knows no state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Copying:
    """What a save needs the state to stay as it is for, its copy or its writing: run by its thread, waited for by the
    training."""

    def __init__(self, asked_s: float = 0.0) -> None:
        """`asked_s` is what it cost the training to ask for it."""
        self.asked_s = asked_s
        self._ended = threading.Event()
        self._waiting_since: float | None = None
        self._ended_at = 0.0

    def run(self, copy: Callable[[], T]) -> T:
        try:
            return copy()
        finally:
            self._ended_at = time.monotonic()
            self._ended.set()

    def wait(self) -> None:
        """Return once the copy has ended, well or not."""
        if not self._ended.is_set():
            self._waiting_since = time.monotonic()
            self._ended.wait()

    @property
    def blocked_s(self) -> float:
        """Seconds that the training has stood still for it. Once the copy has ended."""
        since = self._waiting_since
        return self.asked_s + (max(0.0, self._ended_at - since) if since is not None else 0.0)
