"""Batches made one ahead: while a micro batch is computed, a thread makes the next one, in page-locked memory where a GPU takes it.

Owns that thread and the count of seconds that training waited for it. Refuses to know which batch belongs where: what is made,
and in which order, is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import torch

from trainer.data.batch import Batch
from trainer.engine import threads

Place = TypeVar("Place")


class Ahead:
    """An iterator of `make(place)` for each of `places`, in order. What `make` raises is raised where its batch is due."""

    waited_s = 0.0
    """Seconds that the caller has waited, since it set this to 0."""

    def __init__(self, places: Iterable[Place], make: Callable[[Place], Batch], device: torch.device) -> None:
        self._work: Iterator[Callable[[], Batch]] = (partial(make, place) for place in places)
        self._device = device
        self._thread = threads.pool(1, "batches")
        self._next: Future[Batch] | None = None
        self._submit()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._next is None:
            self._thread.shutdown(wait=False)
            raise StopIteration
        began = time.perf_counter()
        batch = self._next.result()
        self.waited_s += time.perf_counter() - began
        self._submit()
        return batch

    def _submit(self) -> None:
        work = next(self._work, None)
        self._next = None if work is None else self._thread.submit(self._made, work)

    def _made(self, work: Callable[[], Batch]) -> Batch:
        batch = work()
        return batch.pinned() if self._device.type == "cuda" else batch
