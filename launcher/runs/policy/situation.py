"""What a policy is told at a decision, and what it answers. Knows no policy, no cloud and no clock."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Market(enum.Enum):
    """What a machine is rented as."""

    NONE = "none"
    """No machine: waiting."""
    SPOT = "spot"
    ON_DEMAND = "on demand"


@dataclass(frozen=True, slots=True)
class Offer:
    """Spot machines of one zone that can be had now, or that the run is on."""

    zone: str
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Situation:
    """Of a run at a decision. Seconds; money in US dollars."""

    now_s: float
    """On the same clock as what was seen of the zones."""
    deadline_s: float
    work_left_s: float
    """From the last committed step to the last one, at the speed that was measured."""
    restart_s: float
    """From asking for a machine to the first new step, as measured: the longest seen, where several were."""
    save_s: float
    """A save, and the steps since the last one: what a machine that is given up may lose."""
    until_next_s: float
    """Until the next decision at the latest."""
    market: Market
    zone: str | None
    """Of the spot machine; None on any other."""
    is_starting: bool
    """The machine was asked for and makes no step yet."""
    on_demand_usd_per_hour: float
    spot: tuple[Offer, ...]
    """What can be had now, the machine that the run is on included."""
    budget_left_usd: float | None = None
    """None where the job has no budget."""

    @property
    def slack_s(self) -> float:
        """Time that may still be lost to waits and restarts. It never grows while the speed holds."""
        return self.deadline_s - self.now_s - self.work_left_s


@dataclass(frozen=True, slots=True)
class Choice:
    """The machine to be on until the next decision."""

    market: Market
    zone: str | None = None
    is_out_of_budget: bool = False
    """Save, and stop for want of money."""


WAIT = Choice(Market.NONE)
ON_DEMAND = Choice(Market.ON_DEMAND)
OUT_OF_BUDGET = Choice(Market.NONE, is_out_of_budget=True)
