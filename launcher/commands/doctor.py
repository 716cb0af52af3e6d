"""`dolphin doctor`: what this machine has for each backend, and what to do where something is missing.

Owns what every command needs, and how checks are shown; each backend has checks of its own. A check looks, and
changes nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import asdict

from launcher.backends.base import BACKENDS, checks_of
from launcher.backends.checks import Check, Health
from launcher.follow import screen
from launcher.runs import ledger
from launcher.runs.errors import BadUsage
from launcher.runs.states import EXIT_CODES, EndReason
from launcher.units import size

_LOW_DISK_BYTES = 20_000_000_000
"""A small model with its checkpoints; the reference job needs 140 GB."""


def doctor_command(*, json_wanted: bool = False) -> int:
    """Print the checks; 0 where at least one backend has what it needs, 4 where none has."""
    checks = [*check_python(), *check_home(), *(found for name in BACKENDS for found in checks_of(name))]
    usable = usable_backends(checks)
    if json_wanted:
        print(json.dumps({"backends": usable, "findings": [asdict(f) for f in checks]}, indent=2))
    else:
        rows = [[f.backend, f.subject, f.health.value, f.found] for f in checks]
        screen.table(["for", "what", "", "found"], rows, file=sys.stdout)
        for check in checks:
            if check.advice:
                print(f"{check.backend}, {check.subject}: {check.advice}")
        print(f"usable backends: {', '.join(usable) or 'none'}")
    return 0 if usable else EXIT_CODES[EndReason.BACKEND]


def usable_backends(checks: list[Check]) -> list[str]:
    """Backends for which nothing is missing."""
    missing = {f.backend for f in checks if f.health is Health.MISSING}
    backends = dict.fromkeys(f.backend for f in checks if f.backend != "any")
    return [] if "any" in missing else [name for name in backends if name not in missing]


def check_python() -> list[Check]:
    return [Check("any", "python", Health.OK, f"{sys.version.split()[0]} at {sys.executable}")]


def check_home() -> list[Check]:
    try:
        home = ledger.home()
    except BadUsage as error:
        return [Check("any", "DOLPHIN_HOME", Health.MISSING, "none", str(error))]
    existing = next(path for path in (home, *home.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()  # permission bits say too little of read-only and full disks
    except OSError as error:
        advice = f"it cannot be written ({error.strerror}); set DOLPHIN_HOME to a folder of yours"
        return [Check("any", "DOLPHIN_HOME", Health.MISSING, str(home), advice)]
    free_bytes = shutil.disk_usage(existing).free
    found = f"{home}, {size(free_bytes)} free"
    if free_bytes < _LOW_DISK_BYTES:
        advice = (
            f"less than {size(_LOW_DISK_BYTES)} for data, checkpoints and models; set DOLPHIN_HOME to a larger disk"
        )
        return [Check("any", "DOLPHIN_HOME", Health.NOTE, found, advice)]
    return [Check("any", "DOLPHIN_HOME", Health.OK, found)]
