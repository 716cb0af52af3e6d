"""Know before you pay: a job, its data and the offers -> LaunchPlan. Pure: reads no file, asks nobody, prints nothing.

Owns the steps, the choice of the ZeRO stage, what to change where memory lacks, hours and prices. The counting itself is
in `gpu_memory`, `host_memory`, `throughput` and `preemption`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.backends.base import Offer, Upkeep
from launcher.jobfile.settle import global_batch_of
from launcher.jobfile.spec import JobSpec
from launcher.models.adapters import without_adapters
from launcher.models.architecture import Architecture, TrainedModel
from launcher.plan import preemption, spot_notice
from launcher.plan.adapter_choices import adapter_choices
from launcher.plan.costs import Cost, cost_of
from launcher.plan.data_facts import DataFacts, held_out_sequences
from launcher.plan.gpu_memory import Workload, runs_as
from launcher.plan.gpus import find_card
from launcher.plan.history import PastRun, attention_span, measured_speed_on_cpu, measured_utilisation
from launcher.plan.host_memory import host_memory, node_gib
from launcher.plan.throughput import StepFlops, work_of
from launcher.plan.zero_stage import (
    SAFETY,
    Choice,
    Pace,
    StageOption,
    choices,
    choose_zero,
    flops_of,
    least_recomputation,
    workload,
)
from launcher.units import GB, GIB, MIB, gigabytes
from trainer.run.evaluation_interval import evaluation_interval
from trainer.run.optimizer_state import OPTIMIZER_STATES
from trainer.run.save_interval import expected_interval_s, preemptions_per_day
from trainer.run.work import Work

_spot_hours = functools.lru_cache(maxsize=256)(preemption.with_preemptions)
"""Many offers are of one machine."""
START_S = 600.0
"""Assumed time from the submit to the first step: a node, its image, the model's download."""
HOST_GB_PER_S = 10.0
"""Assumed rate at which a GPU's state is copied to the host, which is what blocks training in a save."""
STORE_GB_PER_S = 1.0
"""Assumed rate of one node writing to its store."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a plan is made of, besides the offers."""

    job: JobSpec
    """With `train.unfrozen` resolved to patterns."""
    model: TrainedModel
    data: DataFacts | None = None
    """None where nothing is known of the data."""
    history: Sequence[PastRun] = ()
    """Newest first."""

    @property
    def preemptions_per_day(self) -> float:
        """On spot: the job's own figure, moved by what earlier spot runs saw."""
        spot = [run for run in self.history if run.is_on_spot]
        stated = self.job.checkpoint.preemptions_per_day
        return preemptions_per_day(stated, sum(run.preemptions for run in spot), sum(run.observed_s for run in spot))

    @property
    def base(self) -> Architecture:
        """Of the model, without adapters."""
        return without_adapters(self.model.architecture)

    @property
    def checkpoint_bytes(self) -> int:
        return OPTIMIZER_STATES[self.job.train.optimizer].saved_bytes * self.model.num_trained


@dataclass(frozen=True, slots=True)
class Steps:
    global_batch: int
    micro_batches: int
    """Per step and GPU."""
    tokens_per_step: int
    per_epoch: int | None
    total: int | None
    """None where nothing is known of the data and no `max_steps` is set."""
    evaluations: tuple[int, ...]
    """Steps before which (0) or after which the validation loss is measured; at most the first and last few are shown."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Accelerators of one kind and number, and what the job is like on them."""

    accelerator: str | None
    count: int
    memory_bytes: int | None
    options: tuple[StageOption, ...]
    chosen: StageOption
    best: StageOption
    """What `zero: auto` takes."""
    micro_batches: int
    """Per step and GPU."""
    recompute_every: int
    """One layer in so many is recomputed; 0: none."""
    choices: tuple[Choice, ...]
    """Where the chosen stage does not fit: what would."""
    without_offload: StageOption | None
    """Where the job offloads its optimizer: what it would be like without, if that fits."""
    host: dict[str, int]
    """Bytes of host memory on one node, by part."""
    flops: StepFlops
    work: Work
    step_s: float | None
    speed_source: str
    save_s: float
    save_interval_s: float

    @property
    def host_gib(self) -> int:
        """What a node must have."""
        return node_gib(self.host)


@dataclass(frozen=True, slots=True)
class Row:
    """One offer: hours and price of the whole run, from the tenth to the ninetieth of a hundred runs."""

    offer: Offer
    is_possible: bool
    why_not: str
    hours: preemption.Hours | None
    price_usd: tuple[float, float, float] | None
    """p10, mean, p90."""
    meets_deadline: bool | None


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    name: str
    base: str
    architecture_source: str
    num_parameters: int
    num_trained: int
    data: DataFacts | None
    steps: Steps
    machines: tuple[Machine, ...]
    rows: tuple[Row, ...]
    owned: tuple[Row, ...]
    """Of this machine, at no price, where it has the GPUs that the job asks for: `launch --on` takes one of them."""
    cost: Cost | None
    """None where the run costs nothing, or its hours are not known."""
    checkpoint_bytes: int
    preemptions_per_day: float
    deadline_h: float | None
    notes: tuple[str, ...]

    @property
    def machine(self) -> Machine:
        """That of the best row; the first where there is none."""
        return self.machines[0]

    @property
    def is_possible(self) -> bool:
        """Whether it fits somewhere."""
        return not self.rows or self.rows[0].is_possible

    def to_json(self) -> dict[str, Any]:
        """Plain values; infinite hours are null."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def make_plan(
    subject: Subject,
    offers: Sequence[Offer],
    *,
    nproc: int | None = None,
    deadline_h: float | None = None,
    owned: Sequence[Offer] = (),
    upkeep: Sequence[Upkeep] = (),
) -> LaunchPlan:
    """`nproc` are the ranks on a node, where the command line says so; `owned` offers are shown beside the others and chosen by
    nobody but the person."""
    job, model, data = subject.job, subject.model, subject.data

    def kind(offer: Offer) -> Kind:
        return offer.accelerator, _ranks_on(offer, job, nproc) * offer.num_nodes

    shown = {kind(offer): offer.accelerator_memory_mib for offer in offers}
    kinds = list(shown) or [(job.resources.gpu_name, job.resources.ranks or 1)]
    machines = {each: _machine(subject, each, shown.get(each)) for each in kinds}
    first = next(iter(machines.values()))
    steps = plan_steps(job, data, first.count)
    rows = [_row(offer, machines[kind(offer)], subject, steps, deadline_h) for offer in offers]
    mine = [
        _row(offer, _machine(subject, kind(offer), offer.accelerator_memory_mib), subject, steps, deadline_h)
        for offer in owned
    ]
    rows.sort(key=lambda row: (not row.is_possible, row.price_usd[1] if row.price_usd else math.inf))
    best = kind(rows[0].offer) if rows else kinds[0]
    ordered = [machines[best], *(machine for key, machine in machines.items() if key != best)]
    return LaunchPlan(
        name=job.name, base=job.model.base, architecture_source=model.architecture.source,
        num_parameters=model.num_parameters, num_trained=model.num_trained, data=data, steps=steps,
        machines=tuple(ordered), rows=tuple(rows), owned=tuple(mine),
        cost=cost_of(
            rows, upkeep, store=job.checkpoint.store, save_interval_s=ordered[0].save_interval_s,
            save_bytes=subject.checkpoint_bytes,
        ),
        checkpoint_bytes=subject.checkpoint_bytes,
        preemptions_per_day=subject.preemptions_per_day, deadline_h=deadline_h,
        notes=tuple(_notes(subject, steps, ordered[0], rows)),
    )  # fmt: skip


Kind = tuple[str | None, int]
"""What offers of one machine have in common: the accelerator, and how many ranks work on it over all nodes."""


def _ranks_on(offer: Offer, job: JobSpec, nproc: int | None) -> int:
    """On one node. An offer without accelerators counts ranks already."""
    if offer.accelerator is None:
        return offer.count
    return min(offer.count, nproc or job.resources.ranks_per_node or offer.count)


def plan_steps(job: JobSpec, data: DataFacts | None, ranks: int) -> Steps:
    """The trainer's own rule: an epoch has ceil(sequences / global batch) steps, the last of them short."""
    batch = global_batch_of(job, ranks)
    per_epoch = -(-data.sequences // batch) if data is not None else None
    total = job.train.max_steps
    if total is None and per_epoch is not None:
        total = max(1, math.ceil(job.train.epochs * per_epoch - 1e-6))
    return Steps(
        global_batch=batch,
        micro_batches=-(-batch // (ranks * job.train.micro_batch)),
        tokens_per_step=batch * job.data.sequence_length,
        per_epoch=per_epoch,
        total=total,
        evaluations=_evaluations(job, per_epoch, total),
    )


def _machine(subject: Subject, kind: Kind, memory_mib: int | None) -> Machine:
    job, model, data, history = subject.job, subject.model, subject.data, subject.history
    accelerator, ranks = kind
    card = find_card(accelerator) if accelerator else None
    load = workload(job, ranks, accelerator is not None)
    labelled, span = data.labelled_share if data else 1.0, attention_span(job, data)
    measured = measured_utilisation(history, job, subject.base, card) if card else None
    shown_mib = min((size for size in (memory_mib, card.memory_mib if card else None) if size), default=None)
    memory_bytes = shown_mib * MIB if shown_mib else None
    pace = Pace(card, measured and measured[0], labelled, span, load.offloads) if card else None
    if job.train.gradient_checkpointing == "auto":
        stage = None if job.train.zero == "auto" else job.train.zero
        load = least_recomputation(model, load, memory_bytes, pace, stage)
    best, options = choose_zero(model, load, memory_bytes, pace)
    chosen = best
    if job.train.zero != "auto":
        stated = runs_as(job.train.zero, job.train.stored_precision)
        chosen = next((option for option in options if option.stage == stated), chosen)
    step_s, source = chosen.time.total_s if chosen.time else None, "no figures for this machine"
    if card is not None:
        source = f"{card.utilisation:.0%} of {card.bf16_tflops:g} TFLOP/s assumed"
        if measured:
            source = f"{measured[0]:.0%} of {card.bf16_tflops:g} TFLOP/s, measured by {measured[1]}"
    elif accelerator is None:
        speed = measured_speed_on_cpu(history, job, ranks)
        if speed:
            tokens = load.ranks * load.micro_batches * load.tokens
            step_s, source = tokens / speed[0], f"{speed[0]:,.0f} tokens/s, measured by {speed[1]}"
    blocked, whole = _save_cost(subject, ranks, step_s or 0.0)
    num_nodes = job.resources.num_nodes
    return Machine(
        accelerator=accelerator, count=ranks, memory_bytes=memory_bytes, options=options, chosen=chosen,
        best=best, micro_batches=load.micro_batches, recompute_every=load.gradient_checkpointing,
        choices=_choices(subject, load, memory_bytes, pace) if chosen.fits is False else (),
        without_offload=_without_offload(model, load, memory_bytes, pace),
        host=host_memory(model, load, chosen.stage, num_nodes),
        flops=flops_of(model, load, labelled, span), work=work_of(model, load.gradient_checkpointing, card), step_s=step_s, speed_source=source, save_s=blocked,
        save_interval_s=expected_interval_s(
            job.checkpoint, step_s=step_s, steps_per_epoch=plan_steps(job, data, ranks).per_epoch, blocked_s=blocked,
            whole_s=whole, rate_per_day=subject.preemptions_per_day,
        ),
    )  # fmt: skip


def _choices(subject: Subject, load: Workload, memory_bytes: int | None, pace: Pace | None) -> tuple[Choice, ...]:
    num_nodes = subject.job.resources.num_nodes
    found = choices(subject.model, load, memory_bytes, pace, num_nodes)
    if subject.job.train.adapter is not None:
        return found
    return (*found, *adapter_choices(subject.base, load, memory_bytes, pace, num_nodes))


def _without_offload(
    model: TrainedModel, load: Workload, memory_bytes: int | None, pace: Pace | None
) -> StageOption | None:
    if not load.offloads:
        return None
    option, _ = choose_zero(model, dataclasses.replace(load, offloads=False), memory_bytes, pace)
    return option if option.fits else None


def _save_cost(subject: Subject, ranks: int, step_s: float) -> tuple[float, float]:
    """(seconds that a save blocks training, seconds until it is committed): measured by the same model, else assumed.

    The state is copied to host memory beside the next step, or written from there where the optimizer is offloaded; only
    what of that is longer than the step blocks.
    """
    job = subject.job
    for run in subject.history:
        theirs = run.job.spec.train
        alike = run.job.spec.model.base == job.model.base
        ours = job.train
        alike = alike and (theirs.unfrozen, theirs.offload, theirs.adapter) == (
            ours.unfrozen,
            ours.offload,
            ours.adapter,
        )
        if alike and run.save_blocked_s is not None and run.save_whole_s is not None:
            return run.save_blocked_s, run.save_whole_s
    size_gb = subject.checkpoint_bytes / GB
    whole = size_gb / STORE_GB_PER_S
    held = whole / job.resources.num_nodes if job.train.offload == "optimizer" else size_gb / ranks / HOST_GB_PER_S
    return max(0.0, held - step_s), whole


def _row(offer: Offer, machine: Machine, subject: Subject, steps: Steps, deadline_h: float | None) -> Row:
    why_not = ""
    if _lacks_memory(offer, machine):
        why_not = f"has {offer.host_memory_gib:,.0f} GiB of memory, needs {_on_cpu(offer, machine) / GIB:,.0f}"
    elif machine.chosen.fits is False:
        lacks = -(machine.chosen.spare_bytes or 0) + SAFETY * (machine.memory_bytes or 0)
        why_not = f"lacks {gigabytes(lacks)} of memory"
    elif _has_small_host(offer, machine):
        why_not = f"has {offer.host_memory_gib:,.0f} GiB of host memory, needs {machine.host_gib:,}"
    if steps.total is None or machine.step_s is None:
        return Row(offer, not why_not, why_not, None, None, None)
    work_s = steps.total * machine.step_s + _evaluation_s(subject.job, steps, machine, subject.data)
    if offer.spot:
        per_day = subject.preemptions_per_day
        hours = _spot_hours(work_s, machine.save_s, machine.save_interval_s, per_day)
    else:
        hours = preemption.without_preemption(work_s, machine.save_s, machine.save_interval_s)
    start = START_S / 3600 if offer.price_usd_per_hour else 0.0
    hours = dataclasses.replace(hours, p10=hours.p10 + start, mean=hours.mean + start, p90=hours.p90 + start)
    price = offer.price_usd_per_hour
    prices = (hours.p10 * price, hours.mean * price, hours.p90 * price)
    in_time = None if deadline_h is None else hours.p90 <= deadline_h
    return Row(offer, not why_not, why_not, hours, prices, in_time)


def _lacks_memory(offer: Offer, machine: Machine) -> bool:
    """Whether ranks on a CPU, whose memory is the node's, need more than there is."""
    if offer.accelerator is not None or offer.host_memory_gib is None:
        return False
    return _on_cpu(offer, machine) > offer.host_memory_gib * GIB


def _on_cpu(offer: Offer, machine: Machine) -> int:
    """Bytes that the ranks of a node fill. Of DeepSpeed's buffers a small model touches a small part, and what is not touched
    takes no memory."""
    memory = machine.chosen.memory
    return (memory.total - memory.parts["buffers"]) * offer.count


def _has_small_host(offer: Offer, machine: Machine) -> bool:
    """Whether the node's own memory is too little beside its GPUs'; of a CPU `_lacks_memory` says it."""
    known = offer.host_memory_gib is not None and offer.accelerator is not None
    return known and (offer.host_memory_gib or 0) < machine.host_gib


def _evaluation_s(job: JobSpec, steps: Steps, machine: Machine, data: DataFacts | None) -> float:
    """Forward passes over the held-out sequences, as many times as there are evaluations."""
    if data is None or machine.step_s is None:
        return 0.0
    held_out = held_out_sequences(job.data, data)
    forward = machine.flops.forward / machine.flops.total
    return len(steps.evaluations) * held_out / steps.global_batch * forward * machine.step_s


def _evaluations(job: JobSpec, per_epoch: int | None, total: int | None) -> tuple[int, ...]:
    if total is None or job.train.evaluate_every == "never" or not job.data.holds_out:
        return ()
    counts_steps = isinstance(job.train.evaluate_every, int)
    interval = evaluation_interval(job.train, per_epoch or 0) if per_epoch or counts_steps else None
    found = set(range(interval, total + 1, interval)) if interval else set()
    return tuple(sorted(found | {total} | ({0} if job.train.evaluate_at_start else set())))


def _notes(subject: Subject, steps: Steps, machine: Machine, rows: Sequence[Row]) -> list[str]:
    job, data, notes = subject.job, subject.data, []
    if job.train.precision == "fp8":
        notes.append("train.precision fp8: hours are counted as for bf16; what fp8 gains has not been measured")
    if job.resources.num_nodes > 1:
        notes.append("the network between nodes is not known: time is counted as if all GPUs were in one")
    if data is None and steps.total is None:
        notes.append("nothing is known of the data: `dolphin data job.yaml` prepares it, or state --sequences N")
    elif data is not None and data.basis == "estimate":
        notes.append(f"steps are an estimate from {data.source}; `dolphin data job.yaml` counts them")
    notes += _stage_notes(job, machine)
    alone = machine.without_offload
    if alone is not None:
        times = machine.chosen.time, alone.time
        gain = f", {times[0].total_s / times[1].total_s - 1:.0%} faster" if times[0] and times[1] else ""
        notes.append(f"it fits without train.offload, at ZeRO-{alone.stage}{gain}")
    if any(_has_small_host(row.offer, machine) for row in rows):
        notes.append(
            f"a launch asks for nodes with {machine.host_gib:,} GiB of host memory; resources.memory_gb overrules that"
        )
    if machine.accelerator is not None and machine.step_s is None:
        notes.append(f"{machine.accelerator} is not in the table of cards: no hours and no price of a run")
    if rows:
        told = spot_notice.note(rows[0].offer, job, subject.checkpoint_bytes, machine.save_interval_s)
        notes += [told] if told is not None else []
    return notes


def _stage_notes(job: JobSpec, machine: Machine) -> list[str]:
    """Why the stage is what it is, where it is not the one that sends least; or which one `auto` would take."""
    chosen, best = machine.chosen, machine.best
    if best.stage != chosen.stage:
        if not best.fits or chosen.fits is False:
            return []
        return [f"zero: auto would take stage {best.stage}: {_compared(best, chosen)}"]
    lower = [option for option in machine.options if option.stage < chosen.stage]
    if not lower or chosen.fits is not True or job.train.zero != "auto":
        return []
    other = max(lower, key=lambda option: option.stage)
    why = f"ZeRO-{chosen.stage} rather than {other.stage}: {_compared(chosen, other)}"
    if (
        any(option.stage == 1 for option in lower)
        and job.train.stored_precision == "bf16"
        and machine.micro_batches > 1
    ):
        why += f"; stage 1 sums its {machine.micro_batches} micro batches in fp32, whole on every GPU"
    return [why]


def _compared(one: StageOption, other: StageOption) -> str:
    """What speaks for the first, in numbers."""
    told = [f"{gigabytes(one.spare_bytes or 0)} to spare instead of {gigabytes(other.spare_bytes or 0)}"]
    if other.fits is False:
        told = [f"stage {other.stage} does not fit"]
    if one.time is not None and other.time is not None:
        told.append(f"{one.time.total_s:.1f} s a step instead of {other.time.total_s:.1f}")
    sent = one.traffic.total_bytes / GB, other.traffic.total_bytes / GB
    told.append(f"{sent[0]:.0f} GB sent instead of {sent[1]:.0f}")
    return ", ".join(told)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
