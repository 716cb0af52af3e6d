"""How far SkyPilot is with a request, from what its server writes about it for a terminal. Pure: knows no sky."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable

_PAYLOAD = re.compile(r"<sky-payload[^>]*>(.*?)</sky-payload>")
_STATUS = re.compile(r"<rich_(?:init|update)>(.*?)</rich_(?:init|update)>", re.DOTALL)
_MARKS = re.compile(r"\x1b\[[0-9;]*m|\[/?[a-z ]*\]")
"""Colours of a terminal, and rich's own marks."""
_LONGEST = 80
"""Characters of a phase: some hold two whole paths."""


class PhaseStream(io.TextIOBase):
    """A stream for `stream_and_get(..., relay_rich_status=True)`: hands each new status line on, in plain words."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._rest, self._last = tell, "", ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            phase = phase_of(line)
            if phase and phase != self._last:
                self._last = phase
                self._tell(phase)
        return len(text)


def phase_of(line: str) -> str | None:
    """`Launching - Waiting for SSH access`; None for a line that holds no status."""
    payload = _PAYLOAD.search(line)
    try:
        status = _STATUS.search(str(json.loads(payload[1]))) if payload else None
    except ValueError:
        return None
    if status is None:
        return None
    text, _, _ = status[1].partition("View logs:")  # a command of SkyPilot's, which knows the run by another name
    words = " ".join(_MARKS.sub("", text).split())
    return (words if len(words) <= _LONGEST else f"{words[: _LONGEST - 3]}...") or None
