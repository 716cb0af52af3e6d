"""The run's log: what the supervisor says and what its children print, line by line, without secrets.

Nothing here raises: a full disk or a pipe that nobody reads must not end a training run. Refuses to know what is said.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from typing import IO

from trainer.run.redaction import redact

_LONGEST_LINE_BYTES = 1 << 18
_OUT = 1


def say(message: str) -> None:
    """A line of the supervisor."""
    write(f"supervisor: {message}")


def write(line: str) -> None:
    """One line; lost where it cannot be written."""
    data = memoryview(f"{redact(line)}\n".encode(errors="replace"))
    try:
        while data:
            data = data[os.write(_OUT, data) :]
    except OSError:
        return


class Following:
    """Copies what a child prints to the log, in a thread, until it and all that hold its output are gone."""

    def __init__(self, child: subprocess.Popen[bytes], hear: Callable[[str], None] = lambda line: None) -> None:
        """`hear` takes each line that says something. The child's output is a pipe."""
        assert child.stdout is not None
        self._thread = threading.Thread(target=self._copy, args=(child.stdout, hear), daemon=True)
        self._thread.start()

    def end(self, timeout_s: float = 5.0) -> None:
        """Return once all is copied. Call it when the child is gone."""
        self._thread.join(timeout_s)

    def _copy(self, stream: IO[bytes], hear: Callable[[str], None]) -> None:
        while line := stream.readline(_LONGEST_LINE_BYTES):
            text = line.decode(errors="replace").rstrip("\n")
            write(text)
            if text.strip():
                hear(redact(text.strip()))
