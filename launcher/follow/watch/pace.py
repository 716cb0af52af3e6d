"""How often a picture is drawn anew: never so often that drawing takes more than a small share of a core."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

SHARE = 0.03
FASTEST_S, SLOWEST_S = 2.0, 60.0


class Pace:
    """Adds up the CPU time of the drawings since the last pause, and says how long the next one is to be."""

    def __init__(self) -> None:
        self._drawn_s = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        began = time.thread_time()
        yield
        self.took(time.thread_time() - began)

    def took(self, cpu_s: float) -> None:
        self._drawn_s += cpu_s

    def pause_s(self) -> float:
        drawn, self._drawn_s = self._drawn_s, 0.0
        return min(SLOWEST_S, max(FASTEST_S, drawn / SHARE))
