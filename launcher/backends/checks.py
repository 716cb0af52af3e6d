"""Checks of `dolphin doctor`: plain data, for those that every command needs and those of a backend."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata


class Health(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Works, with a reservation."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what was found."""

    backend: str
    """`any` is needed by every command."""
    subject: str
    health: Health
    found: str
    advice: str = ""


def installed_version(package: str) -> str | None:
    """By its metadata: nothing is imported, and a folder of the same name in the working directory does not count."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
