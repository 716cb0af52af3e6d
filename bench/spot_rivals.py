"""What bench/spot.py sets beside dolphin's policy: greedy, Uniform Progress, and the optimum that knows the future."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from launcher.runs.policy.sightings import HOUR, Sightings
from launcher.runs.policy.simulate import Job, Policy
from launcher.runs.policy.situation import ON_DEMAND, WAIT, Choice, Market, Situation


def _spot(now: Situation) -> Choice | None:
    """Spot: the machine that it is on, or the first to be had."""
    if now.market is Market.SPOT:
        return Choice(Market.SPOT, now.zone)
    return Choice(Market.SPOT, now.spot[0].zone) if now.spot else None


def _must(now: Situation) -> bool:
    """No tick may be lost any more without missing the deadline."""
    if now.market is Market.SPOT:
        return now.is_starting and now.slack_s < 2 * now.restart_s
    return now.slack_s < now.restart_s + max(now.until_next_s, now.restart_s)


def greedy(now: Situation, _: Sightings) -> Choice:
    """Spot whenever there is one, else wait; on demand for good when the slack is gone."""
    if now.market is Market.ON_DEMAND or _must(now):
        return ON_DEMAND
    return _spot(now) or WAIT


def uniform_progress(job: Job) -> Policy:
    """Uniform Progress (Wu et al., NSDI 2024): spot where there is one; without, on demand while behind the straight line from
    no work at the start to all of it at the deadline. On demand is kept until it is two restarts ahead of the line."""

    def decide(now: Situation, _: Sightings) -> Choice:
        if _must(now):
            return ON_DEMAND
        if now.market is Market.SPOT:
            return Choice(Market.SPOT, now.zone)
        ahead_s = job.work_s - now.work_left_s - job.work_s * now.now_s / job.deadline_s
        if now.market is Market.ON_DEMAND and ahead_s < 2 * now.restart_s:
            return ON_DEMAND
        if spot := _spot(now):
            return spot
        return ON_DEMAND if now.market is Market.NONE and ahead_s < 0 else WAIT

    return decide


def optimum_usd(job: Job, zones: dict[str, Sequence[bool]], tick_s: float) -> float:
    """The least money by which the work can be done in time, by dynamic programming backwards over (tick, machine, what is left
    of its start, work left), where work is counted in parts that divide a tick and a start."""
    unit = math.gcd(math.gcd(int(tick_s), int(job.restart_s)), int(job.work_s))
    work, tick, restart = (int(s) // unit for s in (job.work_s, tick_s, job.restart_s))
    ticks = int(job.deadline_s // tick_s)
    paid = {"demand": job.on_demand_usd_per_hour * unit / HOUR, "spot": job.spot_usd_per_hour * unit / HOUR}
    lefts = [max(0, restart - k * tick) for k in range(-(-restart // tick) + 1)]
    index = np.arange(work + 1)
    end = np.full(work + 1, np.inf)
    end[0] = 0.0
    # value[machine][k]: machine in use at the tick's beginning, its start having had k ticks
    idle, demand = end, [end] * len(lefts)
    spot = {zone: [end] * len(lefts) for zone in zones}

    def through(after: np.ndarray, left: int, price: float) -> np.ndarray:
        """A tick on a machine whose start takes `left` more."""
        steps = max(0, tick - left)
        used = np.minimum(tick, left + index)
        moved = after[np.maximum(index - steps, 0)]
        return price * used + moved

    for t in reversed(range(ticks)):
        up = {zone: bool(trace[t % len(trace)]) for zone, trace in zones.items()}
        nexts = [min(k + 1, len(lefts) - 1) for k in range(len(lefts))]
        demand_on = [through(demand[nexts[k]], lefts[k], paid["demand"]) for k in range(len(lefts))]
        spot_on = {
            zone: [through(spot[zone][nexts[k]], lefts[k], paid["spot"]) for k in range(len(lefts))]
            for zone in zones
            if up[zone]
        }
        fresh = np.minimum(idle, demand_on[0])
        for on in spot_on.values():
            fresh = np.minimum(fresh, on[0])
        fresh[0] = 0.0
        demand = [np.minimum(fresh, on) for on in demand_on]
        spot = {
            zone: [np.minimum(fresh, on) for on in spot_on[zone]] if up[zone] else [fresh] * len(lefts)
            for zone in zones
        }
        idle = fresh
    return float(idle[work])
