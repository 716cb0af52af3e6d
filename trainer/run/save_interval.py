"""How often to save: the interval that loses the least time to saving and to repeating work. Pure numbers, no clock.

Young (1974), "A first order approximation to the optimum checkpoint interval": with a save that costs C and a mean time
M between interruptions, save every sqrt(2 C M). Daly (2006), "A higher order estimate of the optimum checkpoint
interval for restart dumps", section 4: for C < 2M the better sqrt(2 C M) * (1 + sqrt(C / 2M) / 3 + (C / 2M) / 9) - C,
else M.
"""

from __future__ import annotations

import math

SECONDS_PER_DAY = 86400.0
SHORTEST_S = 30.0
"""More often is noise in the log and wear on the disk, whatever the formula says of a save that costs nothing."""
FIRST_S = 120.0
"""Interval before any save was measured."""
WRITE_FACTOR = 2.0
"""A save must be through well before the next one starts: at least this many times its whole duration apart."""


def optimal_interval_s(cost_s: float, mean_time_between_s: float) -> float:
    """Daly's interval between the ends of one save and the start of the next, in seconds."""
    if cost_s <= 0:
        return 0.0
    ratio = cost_s / (2 * mean_time_between_s)
    if ratio >= 1:
        return mean_time_between_s
    young = math.sqrt(2 * cost_s * mean_time_between_s)
    return young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


def preemptions_per_day(stated: float, num_observed: int, observed_s: float) -> float:
    """Mean of the rate after `num_observed` interruptions in `observed_s` seconds.

    The stated rate counts as one interruption seen in the time that it predicts for one (a gamma prior of shape 1), so
    that a few days of watching outweigh it, and one early interruption does not.
    """
    return (1 + num_observed) / (1 / stated + observed_s / SECONDS_PER_DAY)


def save_interval_s(blocked_s: float | None, whole_s: float | None, rate_per_day: float) -> float:
    """Seconds between saves for `every: auto`.

    `blocked_s` is what a save takes from training, `whole_s` how long it is under way in the background; None before
    the first.
    """
    if blocked_s is None or whole_s is None:
        return FIRST_S
    best = optimal_interval_s(blocked_s, SECONDS_PER_DAY / rate_per_day)
    return max(best, WRITE_FACTOR * whole_s, SHORTEST_S)
