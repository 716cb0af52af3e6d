"""Progress on stderr, for a person or a log: how far, how fast, how long still."""

from __future__ import annotations

import sys
import time
from typing import TextIO

LOG_INTERVAL_S = 5.0
TERMINAL_INTERVAL_S = 0.2


class Progress:
    """A bar on a terminal; else a plain line every few seconds."""

    def __init__(self, stream: TextIO | None = None, what: str = "preparing data") -> None:
        self._stream = stream or sys.stderr
        self._what = what
        self._is_terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._shown = self._started
        self._drawn = False

    def update(self, done: int, total: int, rows: int, tokens: int) -> None:
        """`done` of `total` bytes of input (total 0: not known), `rows` read, `tokens` made."""
        now = time.monotonic()
        if now - self._shown < (TERMINAL_INTERVAL_S if self._is_terminal else LOG_INTERVAL_S):
            return
        self._shown = now
        elapsed = now - self._started
        line = f"{self._what}: {rows:,} rows, {tokens:,} tokens, {tokens / elapsed:,.0f} tokens/s"
        if total:
            share = min(1.0, done / total)
            left = elapsed * (1 - share) / share if share else 0.0
            line = f"{line}, {share:.0%}, {_duration(left)} left"
            if self._is_terminal:
                filled = round(24 * share)
                line = f"[{'█' * filled}{'·' * (24 - filled)}] {line}"
        self._drawn = True
        self._stream.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
        self._stream.flush()

    def finish(self, line: str) -> None:
        elapsed = time.monotonic() - self._started
        start = "\r\x1b[K" if self._is_terminal and self._drawn else ""
        self._stream.write(f"{start}{self._what}: {line} ({_duration(elapsed)})\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
