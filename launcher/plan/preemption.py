"""Hours that a run takes on machines that are taken away: a seeded simulation. Pure; knows no prices and no training.

A run does `work_s` of steps, saves every `interval_s` of them, and after each preemption waits for a new node and starts
from its last save.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from trainer.run.save_interval import SECONDS_PER_DAY

RUNS = 2_000
SEED = 20_240_923
RESTART_S = 600.0
"""Assumed mean time from losing a node to the first new step: finding one, its image, the model, the checkpoint."""


@dataclass(frozen=True, slots=True)
class Hours:
    """Of the whole run, saves and restarts included."""

    p10: float
    mean: float
    p90: float
    preemptions: float
    """Expected number of them."""


def without_preemption(work_s: float, save_s: float, interval_s: float) -> Hours:
    """Nobody takes the machine away: the work and its saves."""
    hours = (work_s + save_s * work_s / interval_s) / 3600
    return Hours(hours, hours, hours, 0.0)


def with_preemptions(
    work_s: float, save_s: float, interval_s: float, per_day: float, *, restart_s: float = RESTART_S
) -> Hours:
    """Preemptions come at random (exponential gaps, `per_day` on average while a node runs); each costs what was not
    saved and a restart (exponential too). The same answer every time: the random numbers are seeded.

    A rate at which no save is ever reached gives infinite hours, and says so rather than never ending.
    """
    rate = per_day / SECONDS_PER_DAY
    cycle = interval_s + save_s
    if rate * cycle > 20:
        return Hours(math.inf, math.inf, math.inf, math.inf)
    generator = random.Random(SEED)
    walls, losses = [], 0
    for _ in range(RUNS):
        done = wall = 0.0
        while True:
            left = (work_s - done) / interval_s * cycle
            gap = generator.expovariate(rate)
            if gap >= left:
                wall += left
                break
            done += math.floor(gap / cycle) * interval_s
            wall += gap + generator.expovariate(1 / restart_s)
            losses += 1
        walls.append(wall / 3600)
    walls.sort()
    return Hours(walls[RUNS // 10], sum(walls) / RUNS, walls[RUNS * 9 // 10], losses / RUNS)
