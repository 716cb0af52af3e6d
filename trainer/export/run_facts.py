"""What a run took: hours, nodes, interruptions, price, speed and energy, from its own records. Refuses to know how a card is written."""

from __future__ import annotations

import statistics
from typing import Any

from trainer.run.paid import paid
from trainer.run.run_folder import EventKind, RunDir, read_lines
from trainer.run.spec import NodeJob


def of(job: NodeJob, run: RunDir, now: float) -> list[tuple[str, str]]:
    """(what, how much) for the card, of what the records tell; a step that was trained twice counts twice, as it was paid.
    `now`: the moment of the export, in seconds since the epoch."""
    steps = [line for line in run.read_metrics() if isinstance(line.get("seconds"), int | float)]
    nodes = list(read_lines(run.nodes))
    hours = sum(line["seconds"] for line in steps) / 3600
    found = [("training", f"{hours:.2f} hours on {_machines(job)}"), *_interruptions(run, nodes)]
    found += _price(job, run, now)
    for key, name, form in (("tokens_per_second", "speed", "{:,.0f} tokens/s"), ("mfu", "MFU", "{:.1%}")):
        values = [line[key] for line in steps if isinstance(line.get(key), int | float)]
        if values:
            found.append((name, form.format(statistics.median(values)) + ", the median of all steps"))
    powers = [
        line["gpu_power_w"] * line["seconds"] for line in steps if isinstance(line.get("gpu_power_w"), int | float)
    ]
    if powers:
        kwh = sum(powers) * job.world_size / 3.6e6
        found.append(("energy", f"{kwh:,.2f} kWh in training: what one GPU drew by NVML, times {job.world_size}"))
    return found


def _machines(job: NodeJob) -> str:
    what = "GPU" if job.device == "cuda" else "CPU rank"
    return f"{job.world_size} {what}{'' if job.world_size == 1 else 's'}"


def _interruptions(run: RunDir, nodes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    events = [event.get("event") for event in run.read_events()]
    found = []
    if nodes:
        found.append(("nodes", str(len({(node.get("node"), node.get("managed_job")) for node in nodes}))))
    resumed = events.count(EventKind.RESUMED.value)
    stops, restarts = events.count(EventKind.PREEMPTED.value), events.count(EventKind.RESTARTING.value)
    found.append(
        ("interruptions", f"{stops} stops that saved, {restarts} restarts, {resumed} resumes" if resumed else "none")
    )
    return found


def _price(job: NodeJob, run: RunDir, now: float) -> list[tuple[str, str]]:
    """Planned beside paid until `now`; nothing where the run costs nothing."""
    limits = job.limits
    bill = paid(run, limits, now)
    if not bill.usd and not limits.planned_usd:
        return []
    rows = [
        ("planned", limits.planned_hours, limits.planned_usd, ""),
        ("paid", bill.hours, bill.usd, " until the export"),
    ]
    return [
        (what, f"{hours:,.1f} h, {'price not known' if usd is None else f'${usd:,.2f}'}{until}")
        for what, hours, usd, until in rows
        if hours is not None
    ]
