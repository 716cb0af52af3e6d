"""The settling of a job into the facts of one run: `train.json`, for so many ranks on a device.

Owns the batch that a job means on those ranks. Refuses to know where the ranks are, and memory: the ZeRO stage is handed in.
"""

from __future__ import annotations

from typing import Literal

from launcher.config.problems import LocatedProblem, SpecErrors, key_name
from launcher.jobfile.spec import JobSpec, indivisible
from trainer.run.spec import NodeJob


def global_batch_of(job: JobSpec, world_size: int) -> int:
    """Packed sequences per optimizer step: what the job states, else its accumulation on the ranks of `resources`.

    It never depends on where the job runs: `world_size` counts only where the job states neither batch nor accumulation.
    """
    t = job.train
    if t.global_batch is not None:
        return t.global_batch
    ranks = job.resources.ranks or world_size
    return t.micro_batch * (t.accumulation or 1) * ranks


def settle(
    job: JobSpec, *, nproc: int, run_id: str, run_dir: str, cache_dir: str, device: Literal["cuda", "cpu"], zero: int
) -> NodeJob:
    """The facts of `train.json` for `nproc` ranks on each node; `zero` is the planned stage, for `zero: auto`.

    `run_dir` and `cache_dir` are absolute, as the node sees them. Raises SpecErrors where the batch does not divide.
    """
    for name, folder in (("run_dir", run_dir), ("cache_dir", cache_dir)):
        if not folder.startswith("/"):
            raise ValueError(f"{name} must be absolute: {folder}")
    num_nodes = job.resources.num_nodes
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
        run_id=run_id, run_dir=run_dir, cache_dir=cache_dir, nproc=nproc, num_nodes=num_nodes, device=device, spec=spec
    )
