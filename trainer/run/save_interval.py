"""How often to save: the rule of `checkpoint.every`, pure; the trainer's schedule and the plan ask it. Knows no clock.

`auto` takes the interval that loses the least time to saving and to repeating work.

Young (1974), "A first order approximation to the optimum checkpoint interval": with a save that costs C and a mean time
M between interruptions, save every sqrt(2 C M). Daly (2006), "A higher order estimate of the optimum checkpoint
interval for restart dumps", section 4: for C < 2M the better sqrt(2 C M) * (1 + sqrt(C / 2M) / 3 + (C / 2M) / 9) - C,
else M.
"""

from __future__ import annotations

import math

from trainer.run.settings.checkpoint import CheckpointSpec, SaveEvery

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


def is_due_by_step(settings: CheckpointSpec, step: int, steps_per_epoch: int) -> bool:
    """Whether the step count asks for a save after `step` (from 1): at every multiple, of an epoch's share rounded up."""
    every = settings.every
    if not isinstance(every, SaveEvery):
        return False
    if every.steps is not None and step % every.steps == 0:
        return True
    if every.epochs is None:
        return False
    length = every.epochs * steps_per_epoch
    return math.floor(step / length) > math.floor((step - 1) / length)


def clock_interval_s(
    settings: CheckpointSpec, blocked_s: float | None, whole_s: float | None, rate_per_day: float
) -> float | None:
    """Seconds after which the clock asks for a save; None where it never does. The rest as in `save_interval_s`."""
    every = settings.every
    if not isinstance(every, SaveEvery):
        return save_interval_s(blocked_s, whole_s, rate_per_day)
    return None if every.minutes is None else every.minutes * 60


def expected_interval_s(
    settings: CheckpointSpec, *, step_s: float | None, steps_per_epoch: int | None, blocked_s: float, whole_s: float,
    rate_per_day: float,
) -> float:  # fmt: skip
    """Mean seconds of training between two saves, for a plan: of what asks most often, the others' saves in between not
    counted; `auto`'s where what the job states cannot be told in seconds, as a step's time or an epoch's length is not known."""
    every, stated = settings.every, []
    by_clock = clock_interval_s(settings, blocked_s, whole_s, rate_per_day)
    if by_clock is not None:
        stated.append(by_clock)
    if isinstance(every, SaveEvery) and step_s is not None:
        if every.steps is not None:
            stated.append(every.steps * step_s)
        if every.epochs is not None and steps_per_epoch is not None:
            stated.append(every.epochs * steps_per_epoch * step_s)
    return min(stated, default=save_interval_s(blocked_s, whole_s, rate_per_day))


def save_interval_s(blocked_s: float | None, whole_s: float | None, rate_per_day: float) -> float:
    """Seconds between saves for `every: auto`.

    `blocked_s` is what a save takes from training, `whole_s` how long it is under way in the background; None before
    the first.
    """
    if blocked_s is None or whole_s is None:
        return FIRST_S
    best = optimal_interval_s(blocked_s, SECONDS_PER_DAY / rate_per_day)
    return max(best, WRITE_FACTOR * whole_s, SHORTEST_S)
