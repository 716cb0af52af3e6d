"""The plan of a job: gathers what `make_plan` needs and hands it over, and settles what a launch takes from it.

Owns where offers, data facts and history come from. Refuses to count anything itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from launcher.backends.base import (
    BACKENDS,
    Offer,
    catalog_of,
    caveats_of,
    default_backend,
    get_backend,
    owned_gpus,
    upkeep_of,
    why_not_switched,
)
from launcher.jobfile.limits import moment_of
from launcher.jobfile.spec import JobSpec
from launcher.models.adapters import trained_model
from launcher.models.architecture import find_architecture
from launcher.plan.counting import count, counted
from launcher.plan.data_facts import DataFacts, estimated, stated
from launcher.plan.gpus import NO_BF16, NO_FP8, find_card
from launcher.plan.history import PastRun, known_data, past_runs
from launcher.plan.launch_plan import LaunchPlan, Subject
from launcher.plan.make import make_plan
from launcher.plan.outlook import outlook_of
from launcher.plan.seen import places, weather_of
from launcher.plan.zero_stage import safe_stage
from launcher.runs.errors import BadUsage
from launcher.runs.ledger import cache_dir
from trainer.run.prompts import read_prompts
from trainer.run.settings.train import RecomputeEvery


def plan_of(
    job: JobSpec,
    offers: Sequence[Offer],
    *,
    nproc: int | None = None,
    sequences: int | None = None,
    deadline_h: float | None = None,
    on: str | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    may_count: bool | None = None,
) -> LaunchPlan:
    """The plan of a job whose `unfrozen` is resolved, over the offers of a backend (`on`; where such a job runs, if None).

    `may_count` says whether data that is not known is counted now; if None, where hours cost money and hang on it.
    Many parameters: what the command line may say of a plan. BadInput where the model's shape is not known."""
    name = job.resources.gpu_name
    if name in NO_FP8 and job.train.precision == "fp8":
        raise BadUsage(
            f"resources.accelerators {name}: has no fp8 arithmetic (Ada and Hopper have it: L4, L40S, H100, H200); take one "
            "of those, or train.precision bf16"
        )
    if name in NO_BF16 and job.train.precision == "bf16":
        raise BadUsage(
            f"resources.accelerators {name}: has no bf16 arithmetic; take another card, or train.precision fp32"
        )
    architecture = find_architecture(job.model.base, job.model.revision, cache=cache_dir())
    model, runs = trained_model(architecture, job.train), past_runs()
    is_paid = job.train.max_steps is None and any(offer.price_usd_per_hour for offer in offers)
    facts = data_facts_of(job, runs, sequences, may_count=is_paid if may_count is None else may_count)
    subject = Subject(job, model, facts, runs, len(read_prompts(job.evaluate)))
    name = on or default_backend(job)
    owned = owned_offers(job, besides=name)
    if deadline_h is None and job.deadline is not None:
        now = datetime.now(UTC)
        deadline_h = (moment_of(job.deadline, now) - now).total_seconds() / 3600
    plan = make_plan(
        subject, offers, nproc=nproc, deadline_h=deadline_h, owned=owned, upkeep=upkeep_of(name, job, options)
    )
    not_enforced = why_not_switched(name) if deadline_h is not None else None
    weather = weather_of(offers, job.checkpoint.preemptions_per_day, places())
    outlook = outlook_of(
        plan, budget_usd=job.budget, spot=job.resources.spot, weather=weather, not_enforced=not_enforced
    )
    return dataclasses.replace(plan, outlook=outlook)


def settled_zero(
    job: JobSpec, plan: LaunchPlan | None, *, ranks: int, device: Literal["cuda", "cpu"]
) -> Literal[0, 1, 2, 3]:
    """The ZeRO stage of a launch on so many ranks: the job's own, or for `zero: auto` the plan's choice.

    The safe one where there is no plan (the model's shape is not known), or none of what a GPU holds.
    """
    if job.train.zero != "auto":
        return job.train.zero
    if plan is None or (device == "cuda" and plan.machine.memory_bytes is None):
        return safe_stage(ranks, device == "cuda", job.train.offload == "optimizer")
    return plan.machine.chosen.stage


def planned_step_s(plan: LaunchPlan | None) -> float | None:
    """Seconds of a step on the slowest machine of the plan; None where there are no figures."""
    known = [machine.step_s for machine in plan.machines if machine.step_s] if plan is not None else []
    return max(known, default=None)


def with_recomputation(job: JobSpec, plan: LaunchPlan | None) -> JobSpec:
    """The job with `gradient_checkpointing: auto` replaced by what its plan found; by `true` where there is no plan."""
    if job.train.gradient_checkpointing != "auto":
        return job
    every = plan.machine.recompute_every if plan is not None else 1
    value = bool(every) if every < 2 else RecomputeEvery(every=every)
    return job.model_copy(update={"train": job.train.model_copy(update={"gradient_checkpointing": value})})


def with_memory(job: JobSpec, plan: LaunchPlan | None, device: Literal["cuda", "cpu"]) -> JobSpec:
    """The job asking for the host memory that its plan needs, where it does not say: for whom a machine is chosen, the
    smallest would do."""
    is_on_gpu = job.resources.gpu_name is not None and device == "cuda"
    if job.resources.memory_gb is not None or not is_on_gpu or plan is None:
        return job
    resources = job.resources.model_copy(update={"memory_gb": plan.machine.host_gib})
    return job.model_copy(update={"resources": resources})


def offers_for(
    job: JobSpec, *, offline: bool = False, on: str | None = None, nproc: int | None = None
) -> tuple[list[Offer], list[str]]:
    """Offers of the backend named; else of where such a job runs, from its cached catalog where there is one. And what must be
    read with them. BackendError where neither can be asked."""
    name = on or default_backend(job)
    catalog = catalog_of(name)
    if catalog is not None and (on is None or offline):
        cached = catalog(job)
        if cached or offline:
            return cached, caveats_of(name, job)
    return get_backend(name).offers(job, nproc), []


def owned_offers(job: JobSpec, *, besides: str) -> list[Offer]:
    """This machine, by each backend that could run the job on its GPUs at no price; none where it lacks those asked for, and
    none where the job is planned here already."""
    homes = [name for name, entry in BACKENDS.items() if entry.gpus is not None]
    if job.resources.gpu_name is None or job.resources.num_nodes > 1 or besides in homes:
        return []
    found = []
    for name in homes:
        gpus = owned_gpus(name)
        alike = [memory for gpu, memory in gpus if _is_same_gpu(gpu, job.resources.gpu_name)]
        if len(alike) >= job.resources.gpus_per_node:
            count = job.resources.gpus_per_node
            found.append(Offer(name, name, job.resources.gpu_name, count, accelerator_memory_mib=alike[0]))
    return found


def _is_same_gpu(one: str, other: str) -> bool:
    card = find_card(one)
    return card is find_card(other) if card is not None else one.upper() == other.upper()


def data_facts_of(
    job: JobSpec, runs: Sequence[PastRun], sequences: int | None = None, *, may_count: bool = False
) -> DataFacts | None:
    """Stated, or of an earlier run or count of the same data, or counted now (`may_count`), or estimated from file sizes; None:
    not known."""
    if sequences is not None:
        return stated(sequences)
    known = known_data(runs, job) or counted(job)
    if known is not None or not may_count:
        return known or estimated(job.data)
    why = count(job)
    return counted(job) or estimated(job.data, why)
