"""What becomes of a run under its deadline and its budget: chances and costs, over simulated runs. Pure; asks nobody.

The policy is the one that the run will be under: the deadline's own where it is kept by whoever gets the machines, else what is
chosen once at launch. Availability is drawn from the rates that were seen (`preemptions_per_day`, `launcher.plan.seen`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from launcher.plan.launch_plan import LaunchPlan, Outlook, Row
from launcher.runs.policy.decide import decide
from launcher.runs.policy.sightings import Sightings, Spells
from launcher.runs.policy.simulate import Job, Policy, simulate
from launcher.runs.policy.situation import ON_DEMAND, WAIT, Choice, Market, Situation

RUNS = 20
SEED = 20_261_201
MAX_ZONES = 4
LEAST_TICK_S, LONGEST_TICK_S, TICKS = 30.0, 600.0, 250
RESTART_S = 600.0
"""Where none was seen in a zone: a node, its image, the model, the checkpoint."""
WANT_H = 0.75
"""Mean time for which a zone has no machine after a reclaim, where none was seen: of published traces, rounded."""


@dataclass(frozen=True, slots=True)
class Weather:
    """Of spot machines in one zone, as seen by earlier runs."""

    reclaims_per_hour: float
    restart_s: float


def outlook_of(
    plan: LaunchPlan,
    *,
    budget_usd: float | None,
    spot: str,
    weather: Mapping[str, Weather],
    not_enforced: str | None,
) -> Outlook | None:
    """None without a deadline and a budget, or where hours are not known. `spot` is the job's word for it, `weather` what was
    seen by place, `not_enforced` why the policy cannot be had."""
    if plan.deadline_h is None and budget_usd is None:
        return None
    rows = [row for row in plan.rows if row.is_possible and row.work_h is not None]
    if not rows:
        return None
    tail_h = (plan.ending.save_s + plan.ending.export_s) / 3600
    upkeep = sum(one.price_usd_per_hour for one in plan.cost.upkeep) if plan.cost else 0.0
    scene = _Scene(rows, tail_h, upkeep, plan.machine.save_interval_s / 2)
    impossible = _impossible(scene, plan.deadline_h, budget_usd)
    hows = _candidates(scene, spot, plan.deadline_h, not_enforced)
    for how in hows:
        runs = scene.play(how, plan.deadline_h, plan.preemptions_per_day, weather)
        late = plan.deadline_h is not None and _p90([hours for hours, _ in runs]) > plan.deadline_h
        if not late or how == hows[-1]:
            break
    hours, usd = [h for h, _ in runs], [u for _, u in runs]
    unkept = plan.deadline_h is not None and how != "deadline" and scene.spot is not None and spot != "never"
    return Outlook(
        deadline_h=plan.deadline_h,
        budget_usd=budget_usd,
        how=how,
        hours=(_mean(hours), _p90(hours)),
        usd=(_mean(usd), _p90(usd)),
        in_time=None if plan.deadline_h is None else _share(hours, plan.deadline_h),
        in_budget=None if budget_usd is None else _share(usd, budget_usd),
        why_not=impossible,
        not_enforced=(not_enforced or "") if unkept else "",
    )


def _candidates(scene: _Scene, spot: str, deadline_h: float | None, not_enforced: str | None) -> list[str]:
    """Ways to run, the first that is in time is taken; the last where none is."""
    has_spot, has_demand = scene.spot is not None and spot != "never", scene.demand is not None and spot != "only"
    if not has_spot:
        return ["on demand"]
    if not has_demand:
        return ["spot"]
    if deadline_h is None:
        return ["spot" if scene.is_spot_cheapest else "on demand"]
    return ["deadline"] if not_enforced is None else ["spot", "on demand"]


@dataclass(frozen=True, slots=True)
class _Scene:
    rows: Sequence[Row]
    """Possible, the cheapest first."""
    tail_h: float
    upkeep: float
    lost_s: float
    """Steps to do again after a reclaim: half of what lies between two saves."""

    @property
    def spot(self) -> Row | None:
        return next((row for row in self.rows if row.offer.spot), None)

    @property
    def demand(self) -> Row | None:
        return next((row for row in self.rows if not row.offer.spot), None)

    @property
    def is_spot_cheapest(self) -> bool:
        return self.rows[0].offer.spot

    def play(
        self, how: str, deadline_h: float | None, per_day: float, weather: Mapping[str, Weather]
    ) -> list[tuple[float, float]]:
        """(hours, US dollars) of each simulated run; one where nothing can be taken away."""
        if how == "on demand":
            row = self.demand or self.rows[0]
            hours = (row.hours.mean if row.hours else 0.0) + self.tail_h
            return [(hours, hours * (row.offer.price_usd_per_hour + self.upkeep))]
        spot = self.spot
        assert spot is not None
        assert spot.work_h is not None
        zones = list(dict.fromkeys(row.offer.infra for row in self.rows if row.offer.spot))[:MAX_ZONES]
        known = [weather[zone] for zone in zones if zone in weather]
        restart_s = max((one.restart_s for one in known), default=RESTART_S) + self.lost_s
        demand_usd = self.demand.offer.price_usd_per_hour if self.demand else math.inf
        work_s = (spot.work_h + self.tail_h) * 3600
        horizon_s = deadline_h * 3600 if deadline_h is not None else 3 * work_s
        job = Job(work_s, horizon_s, restart_s, demand_usd, spot.offer.price_usd_per_hour)
        tick_s = min(LONGEST_TICK_S, max(LEAST_TICK_S, work_s / TICKS))
        generator = random.Random(SEED)
        found = []
        for _ in range(RUNS):
            ticks = math.ceil(3 * max(work_s, horizon_s) / tick_s)
            traces: dict[str, Sequence[bool]] = {
                zone: _trace(weather.get(zone), per_day, tick_s, ticks, generator) for zone in zones
            }
            ended = simulate(job, traces, tick_s, POLICIES[how](self.demand is not None))
            hours = ended.finished_s / 3600
            found.append((hours, ended.usd + hours * self.upkeep))
        return found


def _trace(weather: Weather | None, per_day: float, tick_s: float, ticks: int, generator: random.Random) -> list[bool]:
    """Whether a zone has machines, tick by tick: spells of exponential lengths."""
    per_hour = weather.reclaims_per_hour if weather is not None else per_day / 24
    if per_hour <= 0:
        return [True]
    means_h = {True: 1 / per_hour, False: WANT_H}
    is_up = generator.random() < means_h[True] / sum(means_h.values())
    found: list[bool] = []
    while len(found) < ticks:
        length = max(1, round(generator.expovariate(1 / means_h[is_up]) * 3600 / tick_s))
        found += [is_up] * length
        is_up = not is_up
    return found[:ticks]


def _eager(may_pay_more: bool) -> Policy:
    """What SkyPilot does by itself: spot where there is any, else on demand, where it stays; or it waits."""

    def choose(now: Situation, _: Sightings) -> Choice:
        if now.market is not Market.NONE:
            return Choice(now.market, now.zone)
        if now.spot:
            return Choice(Market.SPOT, now.spot[0].zone)
        return ON_DEMAND if may_pay_more else WAIT

    return choose


def _by_deadline(_: bool) -> Policy:
    """The deadline's policy, as it is before it has learnt: one table then serves most decisions, and a plan takes a second."""

    def choose(now: Situation, seen: Sightings) -> Choice:
        return decide(
            now, Sightings({zone: _unlearnt(spells) for zone, spells in seen.zones.items()}, _unlearnt(seen.anywhere))
        )

    return choose


def _unlearnt(spells: Spells) -> Spells:
    return Spells(spells.is_up, spells.since_s, spells.seen_at_s)


POLICIES: dict[str, Callable[[bool], Policy]] = {"deadline": _by_deadline, "spot": _eager}


def _impossible(scene: _Scene, deadline_h: float | None, budget_usd: float | None) -> str:
    """Of the best that could happen: nobody takes a machine away."""
    least = min((row.work_h or 0.0) for row in scene.rows) + scene.tail_h
    if deadline_h is not None and least > deadline_h:
        return f"the work alone takes {least:,.1f} hours, and the deadline is in {deadline_h:,.1f}"
    cheapest = min(
        ((row.work_h or 0.0) + scene.tail_h) * (row.offer.price_usd_per_hour + scene.upkeep) for row in scene.rows
    )
    if budget_usd is not None and cheapest > budget_usd:
        return f"the work alone costs ${cheapest:,.2f}, and the budget is ${budget_usd:,.2f}"
    return ""


def _share(values: Sequence[float], most: float) -> float:
    return sum(value <= most for value in values) / len(values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _p90(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.9 * len(values)) - 1]
