"""What a unit of slack is still worth: expected saving over on demand, by dynamic programming. Knows no clock and no zone's name.

The state is (work left, slack above the reserve, machine, phase of the spell of availability). Work shrinks while a machine
steps and slack does not; slack shrinks while none does and work does not: so two loops in rising order settle it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from launcher.runs.policy.sightings import DOWN, UP, Shape

Table = list[list[list[float]]]
"""[phase][slack][work]"""


@dataclass(frozen=True, slots=True)
class Market:
    """The market as a table sees it. Hours, dollars an hour."""

    restart_h: float
    on_demand: float
    spot: float
    up_level: float
    """Hazards of a spot machine against `UP`."""
    down_level: float
    """Hazards of a want of any against `DOWN`."""
    elsewhere: float
    """Chance that another zone has one when this one is taken."""


@dataclass(frozen=True, slots=True)
class Worth:
    """Expected saving, in dollars, at the points of a grid."""

    work_step: float
    slack_step: float
    market: Market
    spot: Table
    """Running on spot, by phase of its spell."""
    idle_up: Table
    """No machine, and spot can be had."""
    idle_down: Table
    demand_up: Table
    demand_down: Table
    """Running on demand, going on with it."""

    def of_start(self, phase: int, work_h: float, slack_h: float) -> float:
        """Of asking for a spot machine whose spell is in `phase`, with `slack_h` before it starts."""
        left, lasting = slack_h - self.market.restart_h, lasts(self.market, phase)
        started, failed = self.at(self.spot, phase, work_h, left), self.at(self.idle_down, 0, work_h, left)
        return lasting * started + (1 - lasting) * failed - self.market.restart_h * self.market.spot

    def at(self, table: Table, phase: int, work_h: float, slack_h: float) -> float:
        """Between the grid's points, linearly."""
        rows = table[phase]
        j, y = _between(slack_h / self.slack_step, len(rows) - 1)
        i, x = _between(work_h / self.work_step, len(rows[0]) - 1)
        low, high = rows[j], rows[j + 1]
        return (1 - y) * ((1 - x) * low[i] + x * low[i + 1]) + y * ((1 - x) * high[i] + x * high[i + 1])


def _between(position: float, last: int) -> tuple[int, float]:
    position = min(max(position, 0.0), float(last))
    index = min(int(position), last - 1)
    return index, position - index


@lru_cache(maxsize=256)
def solve(market: Market, work_h: float, slack_h: float, work_points: int, slack_points: int) -> Worth:
    """Tables up to `work_h` of work and `slack_h` of slack. Slack is what may be lost before on demand must be taken for good."""
    dw, ds = work_h / work_points, slack_h / slack_points
    gain = (market.on_demand - market.spot) * dw
    into_spot, into_demand = market.restart_h * market.spot, market.restart_h * market.on_demand
    ups, downs = _phases(UP, market.up_level, dw), _phases(DOWN, market.down_level, dw)
    waits = _phases(DOWN, market.down_level, ds)
    lasting = [lasts(market, phase) for phase in range(len(ups))]
    elsewhere, width = market.elsewhere, work_points + 1
    spot, idle_up, demand_up = (_blank(UP, slack_points + 1, width) for _ in range(3))
    idle_down, demand_down = (_blank(DOWN, slack_points + 1, width) for _ in range(2))
    for j in range(slack_points + 1):
        # Slack after a start: between rows `low` and `low + 1`, `part` of the way; no spot machine is started below the first.
        low, part = divmod(j - market.restart_h / ds, 1.0)
        can_start, low = low >= 0, max(int(low), 0)
        high = min(low + 1, j)
        spots, demands_up = [rows[j] for rows in spot], [rows[j] for rows in demand_up]
        demands_down = [rows[j] for rows in demand_down]
        for i in range(1, width):
            before = i - 1
            taken = elsewhere * idle_up[0][j][before] + (1 - elsewhere) * idle_down[0][j][before]
            found, gone = demands_up[0][before], demands_down[0][before]
            for phase, older, end, aging in downs:
                rows = demand_down[phase]
                run = rows[j]
                run[i] = end * found + (1 - end) * ((1 - aging) * run[before] + aging * demands_down[older][before])
                best = -into_demand
                if can_start:
                    best += (1 - part) * rows[low][i] + part * rows[high][i]
                if j:
                    _, _, end, aging = waits[phase]
                    later = (1 - aging) * idle_down[phase][j - 1][i] + aging * idle_down[older][j - 1][i]
                    best = max(best, end * idle_up[0][j - 1][i] + (1 - end) * later)
                idle_down[phase][j][i] = best
                run[i] = max(run[i], best)
            failed = (1 - part) * idle_down[0][low][i] + part * idle_down[0][high][i]
            for phase, older, end, aging in ups:
                run = spots[phase]
                run[i] = gain + end * taken + (1 - end) * ((1 - aging) * run[before] + aging * spots[older][before])
                run = demands_up[phase]
                stay = end * gone + (1 - end) * ((1 - aging) * run[before] + aging * demands_up[older][before])
                best = -into_demand
                if can_start:
                    rows = spot[phase]
                    started = (1 - part) * rows[low][i] + part * rows[high][i]
                    take = lasting[phase] * started + (1 - lasting[phase]) * failed - into_spot
                    best, stay = max(best, take), max(stay, take)
                run[i] = stay
                idle_up[phase][j][i] = best
    return Worth(dw, ds, market, spot, idle_up, idle_down, demand_up, demand_down)


def lasts(market: Market, phase: int) -> float:
    """Chance that a start on spot ends in a step: its machine lasts so long, or another zone's takes its place."""
    alone = math.exp(-UP.per_hour[phase] * market.up_level * market.restart_h)
    return alone + (1 - alone) * market.elsewhere


def _blank(shape: Shape, slacks: int, works: int) -> Table:
    return [[[0.0] * works for _ in range(slacks)] for _ in shape.per_hour]


def _phases(shape: Shape, level: float, step_h: float) -> list[tuple[int, int, float, float]]:
    """Each phase, the next one, and its chances in a step: of the spell's end, and of growing into the next."""
    widths = [*(end - start for start, end in pairwise(shape.ages_h)), math.inf]
    last = len(widths) - 1
    return [
        (phase, min(phase + 1, last), min(1.0, rate * level * step_h), min(1.0, step_h / width))
        for phase, (rate, width) in enumerate(zip(shape.per_hour, widths, strict=True))
    ]
