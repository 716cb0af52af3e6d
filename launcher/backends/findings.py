"""What `dolphin doctor` finds: plain data, for the checks here and those of a backend."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Works, with a reservation."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    backend: str
    """`any` is needed by every command."""
    subject: str
    health: Health
    found: str
    advice: str = ""
