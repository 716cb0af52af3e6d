"""What a run was paid for so far: hours of machines and US dollars, from the records of its run folder.

A machine is paid for from its start until the last that was heard of it. Owns that sum; refuses to know who sells what.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.run.limits import Limits
from trainer.run.run_folder import EventKind, RunDir, read_lines

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Machine:
    """One start of the run, on whatever machine."""

    started_at: float
    """Seconds since the epoch."""
    price_usd_per_hour: float | None


@dataclass(frozen=True, slots=True)
class Paid:
    hours: float
    """Of machines: a wait between two of them is not in it."""
    usd: float | None
    """None where a price is not known."""


def machines_of(run: RunDir, price_usd_per_hour: float | None) -> list[Machine]:
    """In order; `price_usd_per_hour` is for those that did not tell theirs."""
    nodes = list(read_lines(run.nodes))
    if nodes:
        found = [(node.get("setup_at") or node.get("time"), node.get("price_usd_per_hour")) for node in nodes]
    else:
        events = (event for event in run.read_events() if event.get("event") == EventKind.ATTEMPT_STARTED)
        found = [(began, None) for began in dict.fromkeys(event.get("began") for event in events)]
    return [
        Machine(float(at), float(price) if isinstance(price, int | float) else price_usd_per_hour)
        for at, price in found
        if isinstance(at, int | float)
    ]


def paid(run: RunDir, limits: Limits, now: float | None) -> Paid:
    """`now` is for a run that works at this moment; None: it is over, and its last machine was heard of last."""
    machines, heard = machines_of(run, limits.price_usd_per_hour), heard_of(run)
    if not machines:
        return Paid(0.0, 0.0)
    hours, usd, is_known, last = 0.0, 0.0, True, 0.0
    for index, machine in enumerate(machines):
        following = machines[index + 1].started_at if index + 1 < len(machines) else float("inf")
        last = max((at for at in heard if machine.started_at <= at < following), default=machine.started_at)
        if following == float("inf") and now is not None:
            last = now
        used = max(0.0, last - machine.started_at) / HOUR
        hours += used
        is_known &= machine.price_usd_per_hour is not None
        usd += used * (machine.price_usd_per_hour or 0.0)
    usd += limits.upkeep_usd_per_hour * max(0.0, last - machines[0].started_at) / HOUR
    if limits.egress_usd_per_save:
        usd += limits.egress_usd_per_save * sum(
            event.get("event") == EventKind.CHECKPOINT_SAVED for event in run.read_events()
        )
    return Paid(hours, usd if is_known else None)


def heard_of(run: RunDir) -> list[float]:
    """Times of everything that the run wrote down."""
    lines = [*read_lines(run.events), *read_lines(run.metrics)]
    return [float(line["time"]) for line in lines if isinstance(line.get("time"), int | float)]
