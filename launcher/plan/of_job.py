"""The plan of a job: gathers what `make_plan` needs and hands it over, for `plan` and `launch`.

Owns where offers, data facts and history come from. Refuses to count anything itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from launcher.backends.base import Offer, get_backend
from launcher.backends.sky.catalog import catalog_folder, catalog_offers
from launcher.jobfile.spec import JobSpec
from launcher.models.architecture import find_architecture, trainable
from launcher.plan.data_facts import DataFacts, estimated, from_report, stated
from launcher.plan.gpus import NO_BF16, find_card
from launcher.plan.history import PastRun, known_data, past_runs
from launcher.plan.host_memory import host_memory, node_gib
from launcher.plan.make import LaunchPlan, make_plan
from launcher.plan.zero_stage import choose_zero, workload
from launcher.runs.errors import BackendError, BadUsage
from launcher.runs.ledger import cache_dir
from launcher.units import MIB
from trainer.run.exits import BadInput
from trainer.run.spec import NodeJob


def plan_of(
    job: JobSpec, offers: Sequence[Offer], *, sequences: int | None = None, deadline_h: float | None = None
) -> LaunchPlan:
    """The plan of a job whose `unfrozen` is resolved, over these offers. BadInput where the model's shape is not known."""
    name = job.resources.gpu_name
    if name in NO_BF16 and job.train.precision == "bf16":
        raise BadUsage(
            f"resources.accelerators {name}: has no bf16 arithmetic; take another card, or train.precision fp32"
        )
    architecture = find_architecture(job.model.base, job.model.revision)
    patterns = job.train.unfrozen
    if patterns is not None and not isinstance(patterns, tuple):
        raise TypeError("train.unfrozen must be resolved before a plan is made")
    runs = past_runs()
    return make_plan(
        job, offers=offers, data_facts=data_facts_of(job, runs, sequences), architecture=architecture,
        trained=trainable(architecture, patterns), history=runs, deadline_h=deadline_h,
    )  # fmt: skip


def settled_zero(job: JobSpec, *, ranks: int, device: Literal["cuda", "cpu"], offers: Sequence[Offer] = ()) -> int:
    """The ZeRO stage of a launch on so many ranks: the job's own, or for `zero: auto` the least communication that fits.

    Where the model's shape is not known, the safe one: 3 on GPUs. `job.train.unfrozen` must be resolved.
    """
    if job.train.zero != "auto":
        return job.train.zero
    offloads = job.train.offload == "optimizer"
    if ranks == 1 and device == "cpu":
        return 1 if offloads else 0
    patterns = job.train.unfrozen
    try:
        architecture = find_architecture(job.model.base, job.model.revision)
        trained = trainable(architecture, patterns if isinstance(patterns, tuple) else None)
    except BadInput:
        return 3 if device == "cuda" else 1
    shown = next((offer.accelerator_memory_mib for offer in offers if offer.accelerator_memory_mib), None)
    card = find_card(
        next((offer.accelerator for offer in offers if offer.accelerator), None) or job.resources.gpu_name or ""
    )
    mib = None if device == "cpu" else shown or (card.memory_mib if card else None)
    if device == "cuda" and mib is None:
        return 3 if ranks > 1 or offloads else 0
    chosen, _ = choose_zero(architecture, trained, workload(job, ranks, device == "cuda"), mib * MIB if mib else None)
    return chosen.stage


def needed_memory_gb(job: JobSpec, train: NodeJob) -> int | None:
    """Host memory that a node must have for the settled run, in GiB; None where the model's shape is not known."""
    zero, patterns = train.spec.train.zero, job.train.unfrozen
    if zero == "auto":
        raise ValueError("the ZeRO stage must be settled")
    try:
        architecture = find_architecture(job.model.base, job.model.revision)
        trained = trainable(architecture, patterns if isinstance(patterns, tuple) else None)
    except BadInput:
        return None
    load = workload(job, train.world_size, train.device == "cuda")
    return node_gib(host_memory(architecture, trained, load, zero, train.num_nodes))


def offers_for(job: JobSpec, *, offline: bool = False, on: str | None = None, nproc: int | None = None) -> list[Offer]:
    """Offers of the backend named, else of SkyPilot's cached catalog for a job with accelerators, else of this machine."""
    if on is not None and not (on == "sky" and offline):
        return get_backend(on).offers(job, nproc)
    if job.resources.gpu_name is None:
        return get_backend("local").offers(job, nproc)
    cached = catalog_offers(job.resources, catalog_folder())
    if cached or offline or not _has_skypilot():
        return cached
    try:
        return get_backend("sky").offers(job, nproc)
    except BackendError:
        return []


def data_facts_of(job: JobSpec, runs: Sequence[PastRun], sequences: int | None = None) -> DataFacts | None:
    """Stated, or of an earlier run or `dolphin data` over the same data, or estimated from file sizes; None: not known."""
    if sequences is not None:
        return stated(sequences)
    return known_data(runs, job) or _checked_data(job) or estimated(job.data)


def _checked_data(job: JobSpec) -> DataFacts | None:
    """What `dolphin data` left for this job, if the data settings are still the same."""
    folder = cache_dir() / "data-checks" / job.name
    try:
        then = NodeJob.read(folder / "train.json").spec
    except (OSError, ValueError):
        return None
    if then.data != job.data or then.train.seed != job.train.seed:
        return None
    return from_report(folder / "data_report.json", None, job.data.sequence_length)


def _has_skypilot() -> bool:
    try:
        version("skypilot")
    except PackageNotFoundError:
        return False
    return True
