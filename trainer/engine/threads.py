"""Threads of a rank: each begins on the rank's own GPU.

The current CUDA device belongs to a thread, and a new thread's is GPU 0. What it then does on a GPU, a stream or a copy, opens
a context there, half a gigabyte for every rank but the first, on the GPU that has none to spare. So every thread of a rank is
started here, whether it means to use a GPU or not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def start(work: Callable[[], object], name: str) -> threading.Thread:
    """Run `work` in a thread on the device of the one that calls this. A daemon: a rank that dies does not wait for it."""
    take_device = _device_of_caller()

    def run() -> None:
        take_device()
        work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def pool(num_threads: int, name: str) -> ThreadPoolExecutor:
    """Threads on the device of the one that calls this."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=_device_of_caller())


def _device_of_caller() -> Callable[[], None]:
    """What a new thread calls before anything else. Nothing where the process uses no GPU."""
    if not torch.cuda.is_initialized():
        return lambda: None
    device = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(device)
