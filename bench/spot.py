"""The policy for runs with a deadline, beside what one would do instead.

    python bench/spot.py [--traces FILE.jsonl.gz ...] [--skip N] [--first N] [--fit-on ZONE ...] [--json] [--quick]

48 hours of work, due after 52 or 70, on machines that take 3 or 12 minutes to start: on demand at $3.06 an hour, spot at $0.97.
Score: the share of the saving between all on demand (0) and all spot, never taken (100); a run that is late has none.
A trace begins anew where it ends.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import spot_fit
from bench.spot_rivals import greedy, optimum_usd, uniform_progress
from bench.spot_traces import Scene, Trace, groups_of, made, recorded, scenes
from launcher.runs.policy.decide import decide
from launcher.runs.policy.sightings import HOUR
from launcher.runs.policy.simulate import ALMOST_S, Ended, Job, Policy, simulate

WORK_H = 48
DEADLINES_H = (52, 70)
RESTARTS_MIN = (3, 12)
ON_DEMAND_USD, SPOT_USD = 3.06, 0.97
MADE_A_ZONE = 20
QUICK_A_ZONE = 2
OPTIMUM = "optimum"
POLICIES: dict[str, Callable[[Job], Policy]] = {
    "greedy": lambda _: greedy,
    "uniform progress": uniform_progress,
    "dolphin": lambda _: decide,
}

Cell = tuple[int, int, str]
"""Hours to the deadline, minutes of a restart, group."""
Result = dict[str, float | None]
"""Score by policy; None where it missed the deadline."""


def job_of(deadline_h: int, restart_min: int) -> Job:
    return Job(WORK_H * HOUR, deadline_h * HOUR, restart_min * 60.0, ON_DEMAND_USD, SPOT_USD)


def score(usd: float) -> float:
    return (ON_DEMAND_USD - usd / WORK_H) / (ON_DEMAND_USD - SPOT_USD) * 100


def play(task: tuple[Cell, Scene]) -> tuple[Cell, Result]:
    (deadline_h, restart_min, group), scene = task
    job = job_of(deadline_h, restart_min)
    found: Result = {}
    for name, policy_of in POLICIES.items():
        ended: Ended = simulate(job, scene.zones, scene.tick_s, policy_of(job))
        found[name] = score(ended.usd) if ended.finished_s <= job.deadline_s + ALMOST_S else None
    found[OPTIMUM] = score(optimum_usd(job, scene.zones, scene.tick_s))
    return (deadline_h, restart_min, group), found


def played(scenes: Iterable[Scene], processes: int, fit_on: list[Trace]) -> Iterator[tuple[Cell, Result]]:
    """`fit_on`: traces of which the policy takes its shapes; none, and it has its own."""
    tasks = [
        ((deadline_h, restart_min, scene.group), scene)
        for restart_min in RESTARTS_MIN
        for deadline_h in DEADLINES_H
        for scene in scenes
    ]
    prepare = (spot_fit.use, (fit_on,)) if fit_on else (None, ())
    if processes == 1:
        if fit_on:
            spot_fit.use(fit_on)
        yield from map(play, tasks)
        return
    with multiprocessing.Pool(processes, *prepare) as pool:
        yield from pool.imap(play, tasks, chunksize=8)


def report(results: Iterable[tuple[Cell, Result]]) -> dict[str, object]:
    """Cells, and the mean of their scores by policy; a policy that missed a deadline in a cell has no score there, nor a mean."""
    by_cell: dict[tuple[Cell, str], list[float | None]] = defaultdict(list)
    for cell, found in results:
        for policy, value in found.items():
            by_cell[cell, policy].append(value)
    cells, means = [], defaultdict(list)
    for ((deadline_h, restart_min, group), policy), values in sorted(by_cell.items(), key=lambda item: item[0][0]):
        kept = [value for value in values if value is not None]
        missed = len(values) - len(kept)
        mean = None if missed else round(sum(kept) / len(kept), 2)
        means[policy].append(mean)
        cells.append({
            "deadline_h": deadline_h, "restart_min": restart_min, "group": group,
            "policy": policy, "score": mean, "missed": missed, "traces": len(values),
        })  # fmt: skip
    return {"cells": cells, "mean": {policy: mean_of(values) for policy, values in means.items()}}


def mean_of(values: list[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return round(sum(kept) / len(kept), 2) if len(kept) == len(values) else None


def table(told: dict) -> str:
    """The report as Markdown."""
    policies = list(told["mean"])
    rows = defaultdict(dict)
    for cell in told["cells"]:
        key = (cell["group"], cell["deadline_h"], cell["restart_min"], cell["traces"])
        rows[key][cell["policy"]] = f"{cell['missed']} missed" if cell["missed"] else f"{cell['score']:.1f}"
    lines = [
        "| group | deadline | restart | traces | " + " | ".join(policies) + " |",
        "|---" * (4 + len(policies)) + "|",
    ]
    for (group, deadline_h, restart_min, traces), scores in rows.items():
        told_scores = " | ".join(scores[policy] for policy in policies)
        lines.append(f"| {group} | {deadline_h} h | {restart_min} min | {traces} | {told_scores} |")
    means = [told["mean"][policy] for policy in policies]
    lines.append("| mean of the cells | | | | " + " | ".join("none" if m is None else f"{m:.1f}" for m in means) + " |")
    if None not in means:
        low, high = told["mean"]["greedy"], told["mean"][OPTIMUM]
        ways = [(mean - low) / (high - low) * 100 for mean in means]
        lines.append(
            "| of the way from greedy to the optimum | | | | " + " | ".join(f"{way:.0f}%" for way in ways) + " |"
        )
    return "\n".join(lines)


def some_of_each_zone(traces: list[Trace], skip: int, num: int | None) -> list[Trace]:
    """`num` of each zone behind its first `skip`; all of those where None."""
    by_zone: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        by_zone[trace.zone].append(trace)
    return [trace for own in by_zone.values() for trace in own[skip : None if num is None else skip + num]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--traces", nargs="+", type=Path, default=[], help="recorded ones; without, ones made from a seed"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--first", type=int, metavar="N", help="only the first N traces of each zone, of those that are left"
    )
    parser.add_argument("--skip", type=int, metavar="N", default=0, help="leave out the first N traces of each zone")
    parser.add_argument(
        "--fit-on",
        nargs="+",
        metavar="ZONE",
        default=[],
        help="take the shapes of spells from these zones' traces, and play the other zones alone",
    )
    parser.add_argument("--quick", dest="first", action="store_const", const=QUICK_A_ZONE, help="--first 2")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    told = parser.parse_args()
    traces = [trace for path in told.traces for trace in recorded(path)] or made(MADE_A_ZONE)
    groups = groups_of(traces)  # of all that there are, however few are played
    fit_on = [trace for trace in traces if trace.zone in told.fit_on]
    if unknown := sorted(set(told.fit_on) - {trace.zone for trace in fit_on}):
        parser.error(
            f"--fit-on {' '.join(unknown)}: no trace of it; there are {', '.join(sorted({t.zone for t in traces}))}"
        )
    traces = [trace for trace in traces if trace.zone not in told.fit_on]
    traces = some_of_each_zone(traces, told.skip, told.first)
    found = report(played(scenes(traces, groups), told.processes, fit_on))
    print(json.dumps(found) if told.json else table(found))


if __name__ == "__main__":
    main()
