"""Regions and zones: their form, and which there are, as far as SkyPilot's catalog on this machine says.

Owns where that catalog lies. Refuses to use the network: of a cloud that is not in the catalog only the form is judged, and
SkyPilot itself judges the rest before a launch asks.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

CATALOG_VERSIONS = ("v8", "v7", "v6", "v5")
_FORM = re.compile(r"\w([\w., :@-]*\w)?")
"""us-east-1, us-central1-a, EU-RO-1, `Ohio, US`, a context of Kubernetes."""


def catalog_folder() -> Path | None:
    """SkyPilot's catalog on this machine: $DOLPHIN_CATALOGS, or the newest under ~/.sky/catalogs. None where there is none."""
    stated = os.environ.get("DOLPHIN_CATALOGS")
    root = Path(stated) if stated else Path(os.path.expanduser("~/.sky/catalogs"))
    return next((root / version for version in CATALOG_VERSIONS if (root / version).is_dir()), None)


def region_problem(region: str, clouds: Sequence[str], folder: Path | None) -> str | None:
    """Why none of these clouds has such a region; None where one has it, or where that is not known here."""
    return _problem(region, "region", "Region", clouds, folder)


def zone_problem(zone: str, cloud: str, folder: Path | None) -> str | None:
    """As `region_problem`, of a zone."""
    return _problem(zone, "zone", "AvailabilityZone", [cloud], folder)


def _problem(name: str, what: str, column: str, clouds: Sequence[str], folder: Path | None) -> str | None:
    if not _FORM.fullmatch(name):
        return f"{name!r} is no {what}'s name; write it as the cloud does, for example us-east-1"
    known: set[str] = set()
    for cloud in clouds:
        of_cloud = _names(folder, cloud, column)
        if not of_cloud:
            return None
        known |= of_cloud
    if not known or name in known:
        return None
    near = difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=0.7)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known)[:12])}"
    return f"{name!r} is no {what} of {' or '.join(clouds)} in SkyPilot's catalog ({folder}); {hint}"


def _names(folder: Path | None, cloud: str, column: str) -> set[str]:
    found: set[str] = set()
    for path in sorted((folder / cloud).glob("*.csv")) if folder is not None else ():
        try:
            with open(path, newline="", encoding="utf-8") as handle:
                found |= {row.get(column) or "" for row in csv.DictReader(handle)}
        except (OSError, ValueError, csv.Error):
            return set()
    return found - {""}
