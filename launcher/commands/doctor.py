"""`dolphin doctor`: what this machine has for each backend, and what to do where something is missing.

Owns what every command needs, and how checks are shown; each backend has checks of its own. A check looks, and
changes nothing; `--fix` does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import Distribution, PackagePath, distributions
from pathlib import Path

from launcher.backends.base import BACKENDS, checks_of, fixed_of
from launcher.backends.checks import Check, Health
from launcher.follow import screen
from launcher.runs import ledger
from launcher.runs.errors import BadUsage, LauncherError
from launcher.runs.states import EXIT_CODES, EndReason
from launcher.units import size

DISTRIBUTION = "dolphin-launcher"
PACKAGES = ("launcher", "trainer")
_LOW_DISK_BYTES = 20_000_000_000
"""A small model with its checkpoints; the reference job needs 140 GB."""


def doctor_command(*, json_wanted: bool = False, is_fixing: bool = False) -> int:
    """Print the checks; 0 where at least one backend has what it needs, 4 where none has. With `is_fixing` each backend first sets
    up what it can, and says what it wrote."""
    for name in BACKENDS if is_fixing else ():
        for line in fixed_of(name):
            screen.say(line)
    checks = [
        *check_python(),
        *check_own_files(),
        *check_home(),
        *(found for name in BACKENDS for found in checks_of(name)),
    ]
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


def check_own_files(distributions: Callable[[], Iterable[Distribution]] = distributions) -> list[Check]:
    """Whether another distribution brought packages of our names, and whether a file of ours is no longer what was installed."""
    installed = list(distributions())
    own = next((one for one in installed if one.name == DISTRIBUTION), None)
    others = sorted(
        {f"{one.name} {one.version}" for one in installed if one.name != DISTRIBUTION and _brings_our_names(one)}
    )
    changed = sorted(str(file) for file in (own.files if own is not None else None) or () if _is_changed(file))
    again = f"`pip install --force-reinstall --no-deps {DISTRIBUTION}`"
    if changed:
        by = f" by {', '.join(others)}" if others else ""
        first = f"{changed[0]}{f' and {len(changed) - 1} more' if len(changed) > 1 else ''}"
        remedy = f"`pip uninstall {others[0].split()[0]}`, then {again}" if others else again
        return [Check("any", "dolphin's files", Health.MISSING, f"{first} overwritten{by}", remedy)]
    if others:
        advice = f"it has packages of dolphin's names, which it finds all the same; pip uninstall {others[0].split()[0]} where you can"
        return [Check("any", "dolphin's files", Health.NOTE, f"beside {', '.join(others)}", advice)]
    return [Check("any", "dolphin's files", Health.OK, "as installed")]


def _brings_our_names(distribution: Distribution) -> bool:
    return any(file.parts[0] in PACKAGES and file.suffix == ".py" for file in distribution.files or ())


def _is_changed(file: PackagePath) -> bool:
    """Against the hash that was recorded when it was installed; False for what has none."""
    if file.parts[0] not in PACKAGES or file.hash is None or file.suffix != ".py":
        return False
    try:
        digest = hashlib.new(file.hash.mode, Path(str(file.locate())).read_bytes()).digest()
    except (OSError, ValueError):
        return True
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value


def check_home() -> list[Check]:
    try:
        home = ledger.home()
    except BadUsage as error:
        return [Check("any", "DOLPHIN_HOME", Health.MISSING, "none", str(error))]
    existing = next(path for path in (home, *home.parents) if path.exists())
    try:
        ledger.check_writable()  # permission bits say too little of read-only and full disks
    except LauncherError as error:
        return [Check("any", "DOLPHIN_HOME", Health.MISSING, str(home), str(error))]
    free_bytes = shutil.disk_usage(existing).free
    found = f"{home}, {size(free_bytes)} free"
    if free_bytes < _LOW_DISK_BYTES:
        advice = (
            f"less than {size(_LOW_DISK_BYTES)} for data, checkpoints and models; set DOLPHIN_HOME to a larger disk"
        )
        return [Check("any", "DOLPHIN_HOME", Health.NOTE, found, advice)]
    return [Check("any", "DOLPHIN_HOME", Health.OK, found)]
