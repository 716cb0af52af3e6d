"""Shapes of spells fitted to traces, for bench/spot.py to try the policy on zones that had no part in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

from bench.spot_traces import Trace
from launcher.runs.policy import decide, sightings, worth
from launcher.runs.policy.sightings import HOUR, Shape


def use(traces: Iterable[Trace]) -> None:
    """Have the policy, in this process, think in the shapes of these traces in place of its own."""
    kept = list(traces)
    up, down = (fitted(kept, is_up, sightings.shape_of(is_up)) for is_up in (True, False))
    for module in (sightings, decide, worth):
        module.UP, module.DOWN = up, down
    worth.solve.cache_clear()


def fitted(traces: Iterable[Trace], is_up: bool, shape: Shape) -> Shape:
    """A shape with the same phases and trust: ends of spells for hours lived in each phase. The last spell of a trace is cut off
    by its end, and ends nowhere."""
    ends, hours = [0.0] * len(shape.ages_h), [0.0] * len(shape.ages_h)
    for trace in traces:
        spells = [(up, len(list(ticks)) * trace.tick_s / HOUR) for up, ticks in groupby(trace.up)]
        for number, (up, length_h) in enumerate(spells, 1):
            if up is not is_up:
                continue
            hours = [sum(pair) for pair in zip(hours, shape.exposures(length_h), strict=True)]
            if number < len(spells):
                ends[shape.phase(length_h)] += 1
    return replace(shape, per_hour=tuple(end / lived for end, lived in zip(ends, hours, strict=True)))
