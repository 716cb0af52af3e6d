"""Reading a large object in order, in ranges, some of them ahead: quick where the line is wide, patient where it breaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from trainer.run.stores.base import CheckpointStore, StoreError

RANGE_BYTES = 8 << 20
"""Of one request: within its 60 s at 0.14 MB/s."""
NUM_AT_ONCE = 8
"""Ranges under way or waiting to be taken: 64 MiB of memory at most."""


def ranges(store: CheckpointStore, name: str, start: int, size: int) -> Iterator[bytes]:
    """The bytes of an object of `size` from `start` on, in pieces, in order. Raises StoreError."""

    def ask(offset: int) -> bytes:
        length = min(RANGE_BYTES, size - offset)
        data = store.get_range(name, offset, length)
        if len(data) != length:
            raise StoreError(f"{store.url}/{name}: {len(data)} bytes came of {length}")
        return data

    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        try:
            for offset in range(start, size, RANGE_BYTES):
                waiting.append(pool.submit(ask, offset))
                if len(waiting) == NUM_AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
