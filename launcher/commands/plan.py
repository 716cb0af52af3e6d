"""`dolphin plan`: say what a job takes, before anything is paid. Owns its options and the two forms of the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from launcher.jobfile.load import load_job
from launcher.plan.of_job import offers_for, plan_of
from launcher.plan.unfrozen import with_resolved_unfrozen
from launcher.runs.errors import BadUsage
from launcher.units import parse_seconds


def plan_command(
    path: str | Path,
    overrides: Sequence[str] = (),
    as_json: bool = False,
    sequences: int | None = None,
    deadline: str | None = None,
    offline: bool = False,
    on: str | None = None,
    nproc: int | None = None,
) -> int:
    """Show the plan of a job (standard error), or print it as JSON (standard output). Starts and pays nothing."""
    job = with_resolved_unfrozen(load_job(path, overrides))
    deadline_h = None if deadline is None else deadline_hours(deadline)
    plan = plan_of(
        job, offers_for(job, offline=offline, on=on, nproc=nproc), sequences=sequences, deadline_h=deadline_h
    )
    if as_json:
        print(json.dumps(plan.to_json(), ensure_ascii=False))
    else:
        from launcher.plan.view import show

        show(plan)
    return 0


def deadline_hours(text: str) -> float:
    """`72h`, `3d`, `90m` -> hours."""
    try:
        hours = parse_seconds(text) / 3600
    except ValueError as error:
        raise BadUsage(f"--deadline {text}: is no time; {error}") from None
    if hours == 0:
        raise BadUsage(f"--deadline {text}: leaves no time; write for example 72h, 3d or 90m")
    return hours
