"""How an export speaks of what went less than well: one line in the run's log. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Made = TypeVar("Made")


def warn(line: str) -> None:
    print(f"warning: {line}", flush=True)


def guarded(what: str, make: Callable[[], Made]) -> Made | None:
    """What `make` returns; None where it fails, which is told: what only describes a model must never cost it."""
    try:
        return make()
    except Exception as error:
        first_line = (str(error).strip().splitlines() or ["no message"])[0]
        warn(f"{what} could not be made ({type(error).__name__}: {first_line}); the model itself is whole")
        return None
