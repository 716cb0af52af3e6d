"""What a run with a deadline or a budget has to keep, as SkyPilot's jobs controller and the run's node are told. Pure.

Owns `job_recovery.dolphin`. Refuses to know whether anybody there acts by it (`enforcement` does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from launcher.backends.sky.deadline.progress import FILE, SLURM
from launcher.backends.sky.task import Place, folder_store
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage
from trainer.run.spec import NodeJob

TICK_S = 600.0
"""Between decisions, as in bench/spot.py."""
RESTART_S = 600.0
"""Assumed until a restart was measured: finding a node, its image, the model, the checkpoint."""
SAVE_S = 60.0
"""Assumed until a save was measured."""
EXPORT_S = 300.0
"""For what comes behind the last step: its save, the export, and a model that goes to a bucket."""
TICK, RESTART, EXPORT = "DOLPHIN_TICK_S", "DOLPHIN_RESTART_S", "DOLPHIN_EXPORT_S"
"""Variables of a job's `env` with other seconds, for rehearsals."""
PREEMPTIBLE = "DOLPHIN_PREEMPTIBLE"
"""Variable of a job's `env`: infras, comma-separated, whose machines may be taken away though nobody calls them spot, such as the
partition of a Slurm cluster whose jobs make way for others."""
MOST_PRICES = 20
"""Of spot, and of on demand."""


def terms_of(
    job: JobSpec, train: NodeJob, places: Sequence[Place], prices: Sequence[Sequence[Any]], plan: Mapping[str, Any]
) -> dict[str, Any] | None:
    """None for a run that has neither deadline nor budget. `prices` as in `task.PRICES_FILE`, `plan` as plan.json has it."""
    if job.deadline is None and job.budget is None:
        return None
    return {
        "deadline": None if job.deadline is None else datetime.fromisoformat(job.deadline).timestamp(),
        "budget": job.budget,
        "progress": progress_at(job, train, places),
        "work_s": work_s(plan),
        "tick_s": _seconds(job, TICK, TICK_S),
        "restart_s": _seconds(job, RESTART, RESTART_S),
        "save_s": SAVE_S,
        "end_s": _seconds(job, EXPORT, EXPORT_S),
        "preemptible": [infra.strip() for infra in job.env.get(PREEMPTIBLE, "").split(",") if infra.strip()],
        "prices": [
            list(price) for kind in (True, False) for price in [one for one in prices if one[1] is kind][:MOST_PRICES]
        ],
    }


def progress_at(job: JobSpec, train: NodeJob, places: Sequence[Place]) -> str:
    """Where the jobs controller finds progress.json: in the bucket, over the login node of a cluster that has the store's folder, or
    in that folder."""
    if folder_store(job) is None:
        return f"{train.store.rstrip('/')}/run/{FILE}"
    path = f"{train.run_dir}/{FILE}"
    clusters = [
        place.infra.split("/")[1] for place in places if place.infra and place.cloud == "slurm" and "/" in place.infra
    ]
    return f"{SLURM}{clusters[0]}:{path}" if clusters else path


def work_s(plan: Mapping[str, Any]) -> float | None:
    """Of the cheapest place where nobody takes the machine away; where every place is spot, of its luckiest tenth. Without
    the start that a plan counts with it."""
    rows = [row for row in plan.get("rows") or () if row.get("is_possible") and row.get("hours")]
    steady = [row["hours"]["mean"] for row in rows if not row["offer"].get("spot")]
    lucky = [row["hours"]["p10"] for row in rows]
    found = [hours for hours in steady or lucky if hours is not None]
    return max(0.0, found[0] * 3600 - RESTART_S) if found else None


def _seconds(job: JobSpec, name: str, default: float) -> float:
    text = job.env.get(name)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise BadUsage(f"env.{name}: {text} are no seconds")
    return seconds
