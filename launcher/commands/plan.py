"""`dolphin plan`: say what a job takes, before anything is paid. Owns its options and the two forms of the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from launcher.backends.base import Offer
from launcher.jobfile.load import load_job
from launcher.jobfile.settle import with_moment
from launcher.plan.model_rules import rules_of
from launcher.plan.of_job import offers_for, plan_of
from launcher.plan.unfrozen import with_resolved_unfrozen
from launcher.runs.errors import BackendError, BadUsage
from launcher.units import parse_seconds
from trainer.run import attention_kernel


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The command line of `plan`."""

    overrides: Sequence[str] = ()
    as_json: bool = False
    sequences: int | None = None
    """Packed sequences of an epoch, stated."""
    deadline: str | None = None
    offline: bool = False
    on: str | None = None
    nproc: int | None = None


def plan_command(path: str | Path, options: PlanOptions = PlanOptions()) -> int:
    """Show the plan of a job (standard error), or print it as JSON (standard output). Starts and pays nothing."""
    job = with_resolved_unfrozen(with_moment(load_job(path, options.overrides), datetime.now(UTC)))
    device: Literal["cuda", "cpu"] = "cuda" if job.resources.gpu_name else "cpu"
    kernel = attention_kernel.expected(job.model, device, job.train.stored_precision, job.resources.gpu_name)
    rules = [*rules_of(job, device), kernel]
    deadline_h = None if options.deadline is None else deadline_hours(options.deadline)
    offers: list[Offer] = []
    caveats: list[str] = []
    try:
        offers, caveats = offers_for(job, offline=options.offline, on=options.on, nproc=options.nproc)
    except BackendError as error:
        if options.on is not None:
            raise
        print(f"no offers, and so no prices: {error}", file=sys.stderr)
    plan = plan_of(
        job,
        offers,
        nproc=options.nproc,
        sequences=options.sequences,
        deadline_h=deadline_h,
        on=options.on,
        may_count=True,
    )
    if options.as_json:
        print(json.dumps(plan.to_json(), ensure_ascii=False))
    else:
        from launcher.plan.view import show

        show(plan)
        for line in [*caveats, *rules]:
            print(f"  {line}", file=sys.stderr)
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
