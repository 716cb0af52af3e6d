"""Availability of spot machines for bench/spot.py: recorded traces, or ones made from a seed.

A file holds a line a trace: `zone`, `trace` (its number), `gap_seconds` (length of a tick) and `unavailable` (a character a tick:
0 a machine can be had, 1 it cannot). Where lines have a `start_time` too, those with the same number began at the same moment.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

SEED = 20_240_416
TICK_S = 600
TICKS = 560
MADE = {
    # zone: (mean hours of short and long spells with machines, of short and long ones without)
    "made-often-1": (0.5, 3.5, 0.3, 2.0),
    "made-often-2": (0.6, 8.0, 0.3, 3.0),
    "made-rarely-1": (0.4, 1.5, 0.5, 6.0),
    "made-rarely-2": (0.4, 3.0, 0.4, 5.0),
}
"""Half of the spells of a zone are short, half long, each exponential; a trace scales its own means by up to two either way."""
SCALE = 2.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What one simulation sees: a zone, or several that began together."""

    group: str
    tick_s: float
    zones: dict[str, tuple[bool, ...]]


@dataclass(frozen=True, slots=True)
class Trace:
    zone: str
    number: str
    tick_s: float
    up: tuple[bool, ...]
    is_with_others: bool


def recorded(path: Path) -> list[Trace]:
    """Raises `ValueError` for a line that is no trace."""
    with gzip.open(path, "rt") as lines:
        return [_read(json.loads(line), f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _read(told: dict[str, object], where: str) -> Trace:
    unavailable = str(told.get("unavailable", ""))
    if not unavailable or set(unavailable) - {"0", "1"}:
        raise ValueError(f"{where}: 'unavailable' is a 0 or 1 a tick")
    up = tuple(tick == "0" for tick in unavailable)
    return Trace(
        str(told["zone"]), str(told["trace"]), float(str(told["gap_seconds"])), up, told.get("start_time") is not None
    )


def made(num_a_zone: int) -> list[Trace]:
    """The same every time."""
    generator = random.Random(SEED)
    return [
        Trace(zone, str(number), TICK_S, _made_up(generator, means), is_with_others=True)
        for zone, means in MADE.items()
        for number in range(num_a_zone)
    ]


def _made_up(generator: random.Random, means: tuple[float, ...]) -> tuple[bool, ...]:
    scales = [SCALE ** generator.uniform(-1, 1) for _ in range(2)]
    is_up = generator.random() < 0.5
    ticks: list[bool] = []
    while len(ticks) < TICKS:
        short, long = means[:2] if is_up else means[2:]
        mean_h = generator.choice((short, long)) * scales[is_up]
        ticks += [is_up] * max(1, round(generator.expovariate(1 / mean_h) * 3600 / TICK_S))
        is_up = not is_up
    return tuple(ticks[:TICKS])


def groups_of(traces: Iterable[Trace]) -> dict[str, str]:
    """Zone to `often` (machines half of the time or more) or `rarely`."""
    by_zone: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        by_zone[trace.zone].append(trace)
    shares = {zone: sum(sum(trace.up) / len(trace.up) for trace in own) / len(own) for zone, own in by_zone.items()}
    return {zone: "often" if share >= 0.5 else "rarely" for zone, share in shares.items()}


def scenes(traces: Iterable[Trace], groups: Mapping[str, str]) -> list[Scene]:
    """Each trace by itself, in its zone's group, and those that began together, as `together`."""
    by_zone: dict[str, list[Trace]] = defaultdict(list)
    together: dict[tuple[str, float], list[Trace]] = defaultdict(list)
    for trace in traces:
        by_zone[trace.zone].append(trace)
        if trace.is_with_others:
            together[trace.number, trace.tick_s].append(trace)
    found = []
    for zone, own in by_zone.items():
        found += [Scene(groups[zone], trace.tick_s, {zone: trace.up}) for trace in own]
    found += [
        Scene("together", tick_s, {trace.zone: trace.up for trace in several})
        for (_, tick_s), several in together.items()
        if len({trace.zone for trace in several}) > 1
    ]
    return found
