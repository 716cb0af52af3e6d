"""The policy: the least money that still meets the deadline. The bound comes first, then the worth of slack.

Slack (deadline - now - work left) only shrinks, by waits and by restarts. The reserve is what a last start on demand may take;
what is above it is spent where the dynamic programme of `worth` says that it saves most.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from launcher.runs.policy import worth
from launcher.runs.policy.sightings import DOWN, HOUR, UP, Sightings
from launcher.runs.policy.situation import ON_DEMAND, OUT_OF_BUDGET, WAIT, Choice, Market, Offer, Situation

LONGER_STARTS = 2.0
"""The last start on demand may take this many times what was measured."""
WORK_POINTS, SLACK_POINTS = 64, 40
"""A table takes 40 ms. 40 x 28 points, with hazards told apart from a quarter on, lose a point of bench/spot.py's score."""
SPOT_SHARE = 0.317
"""Of the price on demand: what a spot machine is assumed to cost while none can be had."""
LEVEL_STEP = math.log(1.15)
"""Learnt hazards are told apart from about a seventh on: a table serves many decisions."""


def reserve_s(situation: Situation) -> float:
    """Slack that no wait may touch: a start on demand, and what the machine before it lost."""
    return LONGER_STARTS * situation.restart_s + situation.save_s


def decide(situation: Situation, seen: Sightings) -> Choice:
    """The machine until the next decision. `seen` holds this moment too."""
    choice = _in_time(situation, seen)
    if situation.budget_left_usd is None:
        return choice
    hours = (situation.until_next_s + situation.save_s) / HOUR
    return choice if _usd_per_hour(situation, choice) * hours <= situation.budget_left_usd else OUT_OF_BUDGET


def _usd_per_hour(now: Situation, choice: Choice) -> float:
    if choice.market is Market.ON_DEMAND:
        return now.on_demand_usd_per_hour
    return sum(offer.usd_per_hour for offer in now.spot if offer.zone == choice.zone)


def _in_time(now: Situation, seen: Sightings) -> Choice:
    above = now.slack_s - reserve_s(now)
    may_idle = above >= now.until_next_s
    if now.market is Market.SPOT and (may_idle if now.is_starting else above >= 0):
        return Choice(Market.SPOT, now.zone)
    if not may_idle:
        return ON_DEMAND
    return max(worths(now, seen, above).items(), key=lambda item: item[1])[0]


def worths(now: Situation, seen: Sightings, above_s: float) -> dict[Choice, float]:
    """Expected saving, in dollars, of each choice that the bound leaves. A spot machine that is to be had is not waited by.
    `above_s` is the slack above the reserve."""
    work, slack, restart = now.work_left_s / HOUR, above_s / HOUR, now.restart_s / HOUR
    step = now.until_next_s / HOUR
    into_demand = restart * now.on_demand_usd_per_hour
    # On demand until the next decision: work is done, or the start takes the time. Valued after it, or staying would count
    # what switching now saves.
    if now.market is Market.ON_DEMAND:
        into_demand, then = 0.0, (work - step, slack)
    else:
        then = (work, slack - restart)
    found: dict[Choice, float] = {}
    for offer in now.spot:
        table, phase = _table(now, seen, offer), UP.phase(seen.zones[offer.zone].age_h())
        demand = table.at(table.demand_up, phase, *then) - into_demand
        found[ON_DEMAND] = max(demand, found.get(ON_DEMAND, -math.inf))
        if slack >= max(restart, step):
            found[Choice(Market.SPOT, offer.zone)] = table.of_start(phase, work, slack)
    if found:
        return found
    table, phase = _table(now, seen, None), DOWN.phase(seen.anywhere.age_h())
    ends = min(1.0, DOWN.per_hour[phase] * table.market.down_level * step)

    def after(up: worth.Table, down: worth.Table, work_h: float, slack_h: float) -> float:
        return ends * table.at(up, 0, work_h, slack_h) + (1 - ends) * table.at(down, phase, work_h, slack_h)

    return {
        ON_DEMAND: after(table.demand_up, table.demand_down, *then) - into_demand,
        WAIT: after(table.idle_up, table.idle_down, work, slack - step),
    }


def _table(now: Situation, seen: Sightings, offer: Offer | None) -> worth.Worth:
    """Of a zone's machines; of any zone's, where none has one."""
    spells = seen.zones[offer.zone] if offer else seen.anywhere
    market = worth.Market(
        restart_h=now.restart_s / HOUR,
        on_demand=now.on_demand_usd_per_hour,
        spot=offer.usd_per_hour if offer else SPOT_SHARE * now.on_demand_usd_per_hour,
        up_level=_stepped(spells.level(True), LEVEL_STEP),
        down_level=_stepped(seen.anywhere.level(False), LEVEL_STEP),
        elsewhere=round(seen.elsewhere(), 1),
    )
    return worth.solve(market, _reach(now.work_left_s), _reach(now.slack_s), WORK_POINTS, SLACK_POINTS)


def _reach(seconds: float) -> float:
    """Hours that a table covers: at least so many, and in such steps that it serves for a while."""
    return _stepped(max(seconds / HOUR, 0.25), math.log(1.5), math.ceil)


def _stepped(value: float, step: float, to_whole: Callable[[float], int] = round) -> float:
    """`value` on a scale of whole steps of its logarithm."""
    return math.exp(to_whole(math.log(value) / step - 1e-9) * step)
