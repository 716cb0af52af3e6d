"""A run under a policy against recorded availability, tick by tick. Pure; knows no policy.

As in the literature: a decision a tick, made after the tick's availability is seen, which then holds for the tick; a machine
is paid from the tick that asks for it; a spot machine is gone with the first tick in which its zone has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.runs.policy.sightings import HOUR, Sightings
from launcher.runs.policy.situation import Choice, Market, Offer, Situation

Policy = Callable[[Situation, Sightings], Choice]
ALMOST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, and at which prices."""

    work_s: float
    deadline_s: float
    restart_s: float
    """As measured, which the policy is told."""
    on_demand_usd_per_hour: float
    spot_usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Ended:
    usd: float
    finished_s: float
    num_starts: int
    spot_s: float
    """Time on spot machines, starts included."""


def simulate(
    job: Job,
    zones: dict[str, Sequence[bool]],
    tick_s: float,
    policy: Policy,
    start_s: Callable[[Market], float] | None = None,
) -> Ended:
    """Plays `policy` until the work is done, however late. `zones` say a tick whether a spot machine can be had, and begin
    anew where they end. `start_s` says what each start really takes; as measured, where None."""
    seen = Sightings()
    done = usd = spot_s = starting = now = 0.0
    market, zone, starts, tick = Market.NONE, None, 0, 0
    prices = {Market.NONE: 0.0, Market.SPOT: job.spot_usd_per_hour, Market.ON_DEMAND: job.on_demand_usd_per_hour}
    while done < job.work_s - ALMOST_S:
        now = tick * tick_s
        up = {name: bool(trace[tick % len(trace)]) for name, trace in zones.items()}
        seen.see(now, up)
        if market is Market.SPOT and zone is not None and not up[zone]:
            market, zone, starting = Market.NONE, None, 0.0
        choice = policy(
            Situation(
                now_s=now,
                deadline_s=job.deadline_s,
                work_left_s=job.work_s - done,
                restart_s=job.restart_s,
                save_s=0.0,
                until_next_s=tick_s,
                market=market,
                zone=zone,
                is_starting=starting > 0,
                on_demand_usd_per_hour=job.on_demand_usd_per_hour,
                spot=tuple(Offer(name, job.spot_usd_per_hour) for name, is_up in up.items() if is_up),
            ),
            seen,
        )
        if (choice.market, choice.zone) != (market, zone):
            if choice.market is Market.SPOT and not up[choice.zone or ""]:
                raise ValueError(f"a spot machine was asked for in {choice.zone}, which has none at {now:.0f} s")
            market, zone = choice.market, choice.zone
            starting = 0.0
            if market is not Market.NONE:
                starts += 1
                starting = start_s(market) if start_s else job.restart_s
        used = tick_s
        if market is not Market.NONE:
            used = min(tick_s, starting + job.work_s - done)
            done += max(0.0, used - starting)
            starting = max(0.0, starting - tick_s)
        usd += prices[market] * used / HOUR
        spot_s += used if market is Market.SPOT else 0.0
        now += used
        tick += 1
    return Ended(usd, now, starts, spot_s)
