"""What a test needs and a machine may lack: skipped with the reason, or failed where DOLPHIN_REQUIRE asks for it."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import pytest


def lacking(what: str, reason: str) -> NoReturn:
    """Skip, saying what is missing; fail instead where `what` is asked for."""
    if is_asked_for(what):
        pytest.fail(f"DOLPHIN_REQUIRE asks for {what}, but {reason}", pytrace=False)
    pytest.skip(f"{what}: {reason}")


def is_asked_for(what: str) -> bool:
    """Whether DOLPHIN_REQUIRE names it, a comma-separated list: docker,lab,cloud."""
    return what in {name.strip() for name in os.environ.get("DOLPHIN_REQUIRE", "").split(",")}


def given(variable: str) -> Path:
    """The folder or file that the environment variable names; skips where it is not set."""
    value = os.environ.get(variable)
    if not value:
        lacking(variable, f"{variable} is not set; .ci/run sets it where the samples are at hand")
    path = Path(value)
    if not path.exists():
        pytest.fail(f"{variable} names {path}, which does not exist", pytrace=False)
    return path


def has_skypilot() -> bool:
    try:
        return bool(version("skypilot"))  # `import sky` finds this project's folder of that name
    except PackageNotFoundError:
        return False


needs_skypilot = pytest.mark.skipif(
    not has_skypilot(), reason="SkyPilot is not installed here; the lab runs this with its own"
)
