"""`dolphin offers`: prices, beside what earlier runs saw of each place. Owns its two forms; starts and pays nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.backends.base import Offer
from launcher.follow import screen
from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec
from launcher.plan.of_job import offers_for
from launcher.plan.seen import Place, place_of, places
from launcher.runs.errors import BadUsage
from launcher.units import seconds

MAX_ROWS = 24


@dataclass(frozen=True, slots=True)
class OffersOptions:
    """The command line of `offers`."""

    accelerators: str | None = None
    overrides: Sequence[str] = ()
    on: str | None = None
    offline: bool = False
    as_json: bool = False


def offers_command(path: Path | None, options: OffersOptions) -> int:
    """A row an offer on standard output, the cheapest first. BadUsage without a job and without --accelerators."""
    job = _job(path, options)
    offers, caveats = offers_for(job, offline=options.offline, on=options.on)
    seen = places()
    found = [(offer, place_of(offer, seen) if offer.spot else None) for offer in offers]
    per_day = job.checkpoint.preemptions_per_day
    if options.as_json:
        print(json.dumps([as_values(offer, place, per_day) for offer, place in found], ensure_ascii=False))
        return 0
    if not found:
        screen.say("there is no offer; `dolphin doctor` says which clouds are enabled")
        return 0
    columns = ["where", "machine", "kind", "$/h", "seen", "reclaims/h", "restart", "last seen"]
    screen.table(columns, [_row(*one, per_day) for one in found[:MAX_ROWS]], file=sys.stdout)
    if len(found) > MAX_ROWS:
        screen.say(f"{len(found) - MAX_ROWS} more; --json has them all")
    for line in caveats:
        screen.say(line)
    return 0


def _job(path: Path | None, options: OffersOptions) -> JobSpec:
    if path is not None:
        overrides = list(options.overrides)
        overrides += [f"resources.accelerators={options.accelerators}"] if options.accelerators else []
        return load_job(path, overrides)
    if options.accelerators is None:
        raise BadUsage("name a job file, or --accelerators, for example: dolphin offers --accelerators L40S:8")
    try:
        # A job of which the machines alone are looked at.
        return JobSpec.model_validate(
            {"name": "offers", "model": {"base": "a/model"}, "data": {"sources": [{"path": "hf://some/data"}]},
             "resources": {"accelerators": options.accelerators}}
        )  # fmt: skip
    except ValueError:
        raise BadUsage(f"--accelerators {options.accelerators}: write NAME:COUNT, for example L40S:8") from None


def as_values(offer: Offer, place: Place | None, stated_per_day: float) -> dict[str, Any]:
    """For scripts. `seen` is null where no run was there on spot."""
    seen = None
    if place is not None:
        seen = {
            "spot_hours": place.spot_hours,
            "reclaims": place.reclaims,
            "reclaims_per_hour": place.reclaims_per_hour(stated_per_day),
            "restart_s": place.restart_s,
            "last_seen_at": place.last_seen_at,
        }
    return {**asdict(offer), "seen": seen}


def _row(offer: Offer, place: Place | None, stated_per_day: float) -> list[str]:
    nodes = f"{offer.num_nodes} x " if offer.num_nodes > 1 else ""
    row = [
        offer.infra,
        f"{nodes}{offer.count} x {offer.accelerator or 'CPU'}",
        "spot" if offer.spot else "on demand",
        f"{offer.price_usd_per_hour:.2f}",
    ]
    if place is None:
        return [*row, "", "", "", ""]
    return [
        *row,
        f"{place.spot_hours:.1f} h",
        f"{place.reclaims_per_hour(stated_per_day):.2f}",
        "" if place.restart_s is None else seconds(place.restart_s),
        f"{seconds(max(0.0, time.time() - place.last_seen_at))} ago",
    ]
