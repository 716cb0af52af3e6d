"""What `dolphin doctor` finds for runs through SkyPilot, by metadata alone: importing it takes seconds."""

from __future__ import annotations

from launcher.backends.checks import Check, Health, installed_version
from launcher.backends.sky.enforcement import RESTART, deadline_is_enforced, set_up


def checks() -> list[Check]:
    version = installed_version("skypilot")
    if version is None:
        return [Check("sky", "skypilot", Health.MISSING, "not installed", "pip install 'dolphin-launcher[sky]'")]
    why_not = deadline_is_enforced()
    deadlines = (
        Check("sky", "deadlines", Health.OK, "kept by SkyPilot's jobs controller, by dolphin's plugin")
        if why_not is None
        else Check("sky", "deadlines", Health.NOTE, "not kept on a cluster", why_not)
    )
    return [Check("sky", "skypilot", Health.OK, version, "`sky check` lists the clouds that it may use"), deadlines]


def fix() -> list[str]:
    """Write what SkyPilot needs to keep deadlines; BackendError with what to write by hand."""
    if installed_version("skypilot") is None or deadline_is_enforced() is None:
        return []
    return [*set_up(), f"then: {RESTART}"]
