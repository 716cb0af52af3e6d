"""The policy where availability is not shown: a zone is known by what was asked of it, and by when that was. Pure; knows no cloud.

A zone that gave a machine, or was never asked, is believed to have some; one that took a machine away, or had none, is asked
again after a tick, which costs no money. From a machine on demand it is asked only where the expected saving pays a vain
change of machines.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace

from launcher.runs.policy.decide import decide, reserve_s, worths
from launcher.runs.policy.sightings import HOUR, Sightings, expected_ends
from launcher.runs.policy.situation import Choice, Market, Offer, Situation

FURTHEST_TICKS = 288
"""How far ahead a return to spot is looked for; with ticks of 10 minutes, two days."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run has to keep, and at which prices. Seconds since the epoch, seconds, US dollars."""

    deadline_s: float
    on_demand_usd_per_hour: float
    spot: dict[str, float]
    """Zone to its price an hour."""
    tick_s: float
    """Between decisions."""
    budget_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Of the run, as its node told it last. Seconds; money in US dollars."""

    work_left_s: float
    """From the last committed step to the model."""
    restart_s: float
    """The longest restart that was measured; assumed before the first."""
    save_s: float
    spent_usd: float = 0.0


@dataclass(slots=True)
class Live:
    """The decisions of one run, from its first machine to its last."""

    terms: Terms
    seen: Sightings = field(default_factory=Sightings)
    _asked: dict[str, float] = field(default_factory=dict)
    """Zone to when it was last known to have no machine."""

    def saw(self, now_s: float, zones: dict[str, bool]) -> None:
        """What zones were seen to have: a machine that was given or runs, none, or one that was taken away."""
        known = {zone: zones.get(zone, self._is_up(zone)) for zone in self.terms.spot | zones}
        self.seen.see(now_s, known)
        for zone, is_up in zones.items():
            self._asked.pop(zone, None)
            if not is_up:
                self._asked[zone] = now_s

    def next_machine(self, now_s: float, progress: Progress) -> Choice:
        """What to ask for, where the run has no machine. WAIT is for a tick."""
        zones = [zone for zone in self.terms.spot if now_s - self._asked.get(zone, -math.inf) >= self.terms.tick_s]
        now, seen = self._situation(now_s, progress, zones)
        return decide(now, seen)

    def may_take_s(self, now_s: float, progress: Progress) -> float:
        """How long a spot machine may take to be had before on demand must be asked for."""
        now, _ = self._situation(now_s, progress, [])
        return max(0.0, now.slack_s - reserve_s(now))

    def leaves_on_demand_at(self, now_s: float, progress: Progress) -> float | None:
        """When a machine on demand that was asked for now should be given up for spot; None where never.

        Slack keeps while it steps; what grows is the chance that there are spot machines again."""
        started = now_s + progress.restart_s
        for tick in range(1, FURTHEST_TICKS + 1):
            at = started + tick * self.terms.tick_s
            left = progress.work_left_s - tick * self.terms.tick_s
            if left <= 0 or not self.terms.spot:
                return None
            if self._is_worth_a_try(at, replace(progress, work_left_s=left)):
                return at
        return None

    def _is_worth_a_try(self, at_s: float, progress: Progress) -> bool:
        zone = min(self.terms.spot, key=lambda one: self.terms.spot[one])
        now, seen = self._situation(at_s, progress, [zone], Market.ON_DEMAND)
        above = now.slack_s - reserve_s(now)
        if above < 2 * progress.restart_s + self.terms.tick_s:
            return False
        found = worths(now, seen, above)
        gain = found.get(Choice(Market.SPOT, zone), -math.inf) - found[Choice(Market.ON_DEMAND)]
        in_vain = 2 * progress.restart_s / HOUR * self.terms.on_demand_usd_per_hour
        chance = 1 - math.prod(1 - self._chance(one, at_s) for one in self.terms.spot)
        return chance * gain > (1 - chance) * in_vain

    def _chance(self, zone: str, at_s: float) -> float:
        """That a zone has machines, by how long ago it was known to have none and how long wants last."""
        gone_at = self._asked.get(zone)
        if gone_at is None:
            return 1.0
        began = self.seen.zones[zone].since_s if zone in self.seen.zones else gone_at
        expected = [expected_ends(False, (when - began) / HOUR) for when in (gone_at, at_s)]
        return 1 - math.exp(-(expected[1] - expected[0]) * self.seen.anywhere.level(False))

    def _is_up(self, zone: str) -> bool:
        spells = self.seen.zones.get(zone)
        return zone not in self._asked if spells is None or spells.is_up is None else spells.is_up

    def _situation(
        self, now_s: float, progress: Progress, zones: list[str], market: Market = Market.NONE
    ) -> tuple[Situation, Sightings]:
        """The situation at a moment at which `zones` are believed to have machines."""
        seen = copy.deepcopy(self.seen)
        seen.see(now_s, {zone: zone in zones for zone in self.terms.spot})
        terms = self.terms
        budget = None if terms.budget_usd is None else terms.budget_usd - progress.spent_usd
        return Situation(
            now_s=now_s,
            deadline_s=terms.deadline_s,
            work_left_s=progress.work_left_s,
            restart_s=progress.restart_s,
            save_s=progress.save_s,
            until_next_s=terms.tick_s,
            market=market,
            zone=None,
            is_starting=False,
            on_demand_usd_per_hour=terms.on_demand_usd_per_hour,
            spot=tuple(Offer(zone, terms.spot[zone]) for zone in zones),
            budget_left_usd=budget,
        ), seen
