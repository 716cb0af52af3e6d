"""What earlier runs saw of spot machines, by place: hours, reclaims, how long a start took. Reads the ledger's run folders, where
nodes wrote it down; decides nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.backends.base import Offer
from launcher.plan.outlook import RESTART_S, Weather
from launcher.runs import ledger
from launcher.runs.ledger import RunRecord
from trainer.run.paid import HOUR, heard_of
from trainer.run.run_folder import read_lines
from trainer.run.save_interval import preemptions_per_day


@dataclass(slots=True)
class Place:
    """One zone, as nodes name it."""

    names: set[str]
    """Lower case, as offers write it: cloud/region/zone, with the zone's name and with its id."""
    spot_hours: float = 0.0
    reclaims: int = 0
    restarts_s: list[float] = field(default_factory=list)
    """From the last word of the machine before, or the node's first command, to the first new step."""
    last_seen_at: float = 0.0

    @property
    def restart_s(self) -> float | None:
        return statistics.median(self.restarts_s) if self.restarts_s else None

    def reclaims_per_hour(self, stated_per_day: float) -> float:
        """The job's own figure, moved by what was seen here."""
        return preemptions_per_day(stated_per_day, self.reclaims, self.spot_hours * HOUR) / 24


def places(records: Iterable[RunRecord] | None = None) -> list[Place]:
    """Of all runs in the ledger. A folder that cannot be read tells nothing."""
    found: dict[str, Place] = {}
    for record in ledger.all_runs() if records is None else records:
        try:
            _learn(record, found)
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return list(found.values())


def place_of(offer: Offer, seen: Iterable[Place]) -> Place | None:
    here = offer.infra.lower()
    return next((place for place in seen if here in place.names), None)


def weather_of(offers: Iterable[Offer], stated_per_day: float, seen: Iterable[Place]) -> dict[str, Weather]:
    """By the `infra` of the spot offers whose place was seen."""
    known, found = list(seen), {}
    for offer in offers:
        place = place_of(offer, known) if offer.spot else None
        if place is not None and place.spot_hours:
            found[offer.infra] = Weather(place.reclaims_per_hour(stated_per_day), place.restart_s or RESTART_S)
    return found


def _learn(record: RunRecord, found: dict[str, Place]) -> None:
    nodes = [node for node in read_lines(record.files.nodes) if isinstance(_began(node), int | float)]
    if not nodes:
        return
    heard = sorted(heard_of(record.files))
    steps = [line["time"] for line in read_lines(record.files.metrics) if "loss" in line and "time" in line]
    for index, node in enumerate(nodes):
        began, following = _began(node), _began(nodes[index + 1]) if index + 1 < len(nodes) else float("inf")
        names = _names(node)
        if not names:
            continue
        place = next((place for place in found.values() if place.names & names), None)
        if place is None:
            place = found[min(names)] = Place(set())
        place.names |= names
        last = max((at for at in heard if began <= at < following), default=began)
        place.last_seen_at = max(place.last_seen_at, last)
        first_step = next((at for at in steps if began <= at < following), None)
        if first_step is not None:
            before = max((at for at in heard if at < began), default=began) if _follows(nodes, index) else began
            place.restarts_s.append(float(first_step) - before)
        if node.get("spot") is True:
            place.spot_hours += (last - began) / HOUR
            # What SkyPilot starts again within one submit was taken away.
            place.reclaims += index + 1 < len(nodes) and _follows(nodes, index + 1)


def _began(node: Mapping[str, Any]) -> Any:
    return node.get("setup_at") or node.get("time")


def _follows(nodes: list[dict[str, Any]], index: int) -> bool:
    """Whether the node took over from the one before it, without a person in between."""
    return index > 0 and nodes[index - 1].get("submission") == nodes[index].get("submission")


def _names(node: Mapping[str, Any]) -> set[str]:
    infra = str(node.get("infra") or "").lower()
    if infra.count("/") < 1:
        return set()
    region = "/".join(infra.split("/")[:2])
    return {infra, *(f"{region}/{str(node[key]).lower()}" for key in ("zone", "zone_id") if node.get(key))} - {region}
