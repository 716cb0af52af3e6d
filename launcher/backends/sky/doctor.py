"""What `dolphin doctor` finds for runs through SkyPilot, by metadata alone: importing it takes seconds."""

from __future__ import annotations

from launcher.backends.findings import Finding, Health, installed_version


def checks() -> list[Finding]:
    version = installed_version("skypilot")
    if version is None:
        return [Finding("sky", "skypilot", Health.MISSING, "not installed", "pip install 'dolphin-launcher[sky]'")]
    return [Finding("sky", "skypilot", Health.OK, version, "`sky check` lists the clouds that it may use")]
