"""The settling of a job into the facts of one run: `train.json`, for so many ranks on a device.

Owns the batch that a job means on those ranks. Refuses to know where the ranks are, and memory: the ZeRO stage is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from launcher.config.problems import LocatedProblem, SpecErrors, key_name
from launcher.jobfile.limits import as_moment, moment_of
from launcher.jobfile.spec import JobSpec, indivisible
from launcher.runs.errors import BadUsage
from trainer.run.spec import NodeJob


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a run will live, as the node sees it. ValueError for a folder that is not absolute."""

    run_dir: str
    cache_dir: str
    nproc: int
    """Ranks on each node."""
    device: Literal["cuda", "cpu"]

    def __post_init__(self) -> None:
        for name, folder in (("run_dir", self.run_dir), ("cache_dir", self.cache_dir)):
            if not folder.startswith("/"):
                raise ValueError(f"{name} must be absolute: {folder}")


def with_moment(job: JobSpec, now: datetime) -> JobSpec:
    """The job of a run that starts `now`: its deadline is a moment, and stays that one however often the run is resumed.
    BadUsage where it has passed."""
    if job.deadline is None:
        return job
    at = moment_of(job.deadline, now)
    if at <= now:
        raise BadUsage(f"deadline {job.deadline}: has passed; give another, for example --set deadline=72h")
    return job.model_copy(update={"deadline": as_moment(at)})


def global_batch_of(job: JobSpec, world_size: int) -> int:
    """Packed sequences per optimizer step: what the job states, else its accumulation on the ranks of `resources`.

    It never depends on where the job runs: `world_size` counts only where the job states neither batch nor accumulation.
    """
    t = job.train
    if t.global_batch is not None:
        return t.global_batch
    ranks = job.resources.ranks or world_size
    return t.micro_batch * (t.accumulation or 1) * ranks


def settle(job: JobSpec, place: Placement, *, run_id: str, zero: int, step_seconds: float | None = None) -> NodeJob:
    """The facts of `train.json` for a run at this place; `zero` is the planned stage, for `zero: auto`,
    `step_seconds` the plan's for a step.

    Raises SpecErrors where the batch does not divide by its ranks.
    """
    num_nodes = job.resources.num_nodes
    nproc = place.nproc
    batch = global_batch_of(job, nproc * num_nodes)
    contradictions = indivisible(batch, job.train.micro_batch, nproc * num_nodes, "as launched")
    if contradictions:
        raise SpecErrors(
            [LocatedProblem(f"--nproc {nproc}", None, key_name(f.where), f.message) for f in contradictions]
        )
    stage = zero if job.train.zero == "auto" else job.train.zero
    train = job.train.model_copy(update={"global_batch": batch, "accumulation": None, "zero": stage})
    spec = job.train_spec().model_copy(update={"train": train})
    return NodeJob(
        run_id=run_id, run_dir=place.run_dir, cache_dir=place.cache_dir, nproc=nproc, num_nodes=num_nodes,
        device=place.device, step_seconds=step_seconds, spec=spec,
    )  # fmt: skip
