"""What `dolphin doctor` finds for runs through SkyPilot, by metadata alone: importing it takes seconds."""

from __future__ import annotations

from launcher.backends.checks import Check, Health, installed_version


def checks() -> list[Check]:
    version = installed_version("skypilot")
    if version is None:
        return [Check("sky", "skypilot", Health.MISSING, "not installed", "pip install 'dolphin-launcher[sky]'")]
    return [Check("sky", "skypilot", Health.OK, version, "`sky check` lists the clouds that it may use")]
