"""Feed: a job's log, read once or followed by a thread, into the mirror. Knows no SkyPilot: it is given a `tail`.

Owns reconnecting: a stream that breaks is begun again from its beginning, and the mirror takes each line once.
"""

from __future__ import annotations

import contextlib
import io
import queue
import threading
import time
from collections.abc import Callable

from launcher.backends.sky.log.mirror import Frame, Mirror, frames_in

PrintLog = Callable[[bool, io.TextIOBase], None]
"""Writes the job's log to the stream; with True until the job is over, with False what there is now."""

READ_TIMEOUT_S = 90.0
_BATCH = 500
_FIRST_PAUSE_S, _MAX_PAUSE_S = 2.0, 30.0


class Feed:
    def __init__(self, tail: PrintLog, mirror: Mirror) -> None:
        self._tail, self._mirror = tail, mirror
        self._arrived: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_stopped = threading.Event()
        self.problem: Exception | None = None
        """Why the last reading broke off; None while all is well."""

    @property
    def is_following(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def read_once(self, timeout_s: float = READ_TIMEOUT_S) -> int:
        """Everything in the log now; returns how many lines were new. Raises what `tail` raises. A reading that takes
        longer is left to itself (SkyPilot waits for a node that is being made ready): what it brings is taken later."""
        sink, failed = _Sink(self._arrived), []

        def read() -> None:
            try:
                self._tail(False, sink)
            except Exception as error:
                failed.append(error)
            sink.finish()

        reader = threading.Thread(target=read, name="sky-log-once", daemon=True)
        reader.start()
        reader.join(timeout_s)
        taken = self.take()
        if failed:
            raise failed[0]
        return taken

    def follow(self) -> None:
        """Begin to follow in a thread that goes with the process; nothing where one does already."""
        if not self.is_following and not self._is_stopped.is_set():
            self._thread = threading.Thread(target=self._run, name="sky-log", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Follow no more; what still arrives is left."""
        self._is_stopped.set()

    def take(self, wait_s: float = 0.0) -> int:
        """Put what has arrived into the mirror, after waiting up to `wait_s` for something; how many lines were new."""
        batch: list[Frame] = []
        if wait_s > 0:
            with contextlib.suppress(queue.Empty):
                batch.append(self._arrived.get(timeout=wait_s))
        taken = 0
        while True:
            try:
                batch.append(self._arrived.get_nowait())
            except queue.Empty:
                return taken + self._mirror.take(batch)
            if len(batch) >= _BATCH:
                taken, batch = taken + self._mirror.take(batch), []

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._is_stopped.is_set():
            sink, began = _Sink(self._arrived), time.monotonic()
            try:
                self._tail(True, sink)
                self.problem = None
            except Exception as error:  # whatever broke the stream: the status says whether SkyPilot is there at all
                self.problem = error
            sink.finish()
            pause_s = _FIRST_PAUSE_S if time.monotonic() - began > _MAX_PAUSE_S else min(_MAX_PAUSE_S, pause_s * 2)
            self._is_stopped.wait(pause_s)


class _Sink(io.TextIOBase):
    """Takes text in any pieces; puts the frames of whole lines into the queue."""

    def __init__(self, arrived: queue.SimpleQueue[Frame]) -> None:
        self._arrived, self._rest = arrived, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            for frame in frames_in(line):
                self._arrived.put(frame)
        return len(text)

    def finish(self) -> None:
        self.write("\n")
