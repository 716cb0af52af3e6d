"""Know before you pay: a job, its data and the offers -> LaunchPlan. Pure: reads no file, asks nobody, prints nothing.

Owns the steps, the choice of the ZeRO stage, what to change where memory lacks, hours and prices. The counting itself is
in `gpu_memory`, `host_memory`, `throughput` and `preemption`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from launcher.backends.base import Offer, Upkeep
from launcher.jobfile.settle import global_batch_of
from launcher.jobfile.spec import JobSpec
from launcher.models.architecture import TrainedModel
from launcher.plan import preemption
from launcher.plan.adapter_choices import adapter_choices
from launcher.plan.costs import cost_of, num_saves_of
from launcher.plan.data_facts import DataFacts
from launcher.plan.evaluation_time import Pass, answers_s, losses_s
from launcher.plan.gpu_memory import Workload, runs_as
from launcher.plan.gpus import find_card
from launcher.plan.history import attention_span, measured_speed_on_cpu, measured_utilisation
from launcher.plan.host_memory import host_memory
from launcher.plan.launch_plan import Ending, LaunchPlan, Machine, Row, Steps, Subject
from launcher.plan.notes import has_small_host, notes_of
from launcher.plan.throughput import work_of
from launcher.plan.zero_stage import (
    SAFETY,
    Choice,
    Pace,
    StageOption,
    choices,
    choose_zero,
    flops_of,
    least_recomputation,
    offloads_of,
    workload,
)
from launcher.units import GB, GIB, MIB, gigabytes
from trainer.run.evaluation_interval import evaluation_interval
from trainer.run.save_interval import expected_interval_s

_spot_hours = functools.lru_cache(maxsize=256)(preemption.with_preemptions)
"""Many offers are of one machine."""
START_S = 600.0
"""Assumed time from the submit to the first step: a node, its image, the model's download."""
HOST_GB_PER_S = 10.0
"""Assumed rate at which a GPU's state is copied to the host, which is what blocks training in a save."""
STORE_GB_PER_S = 1.0
"""Assumed rate of one node writing to its store."""
EXPORT_GB_PER_S, ANSWER_S = 0.5, 30.0
"""Assumed rate at which one rank gathers and writes the model folder, and time for the answer of it."""


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
    total, step_s = steps.total, machines[best].step_s
    num_saves = num_saves_of(total, step_s, machines[best].save_interval_s) if total and step_s else 0
    ordered = [machines[best], *(machine for key, machine in machines.items() if key != best)]
    return LaunchPlan(
        name=job.name, base=job.model.base, architecture_source=model.architecture.source,
        num_parameters=model.num_parameters, num_trained=model.num_trained, data=data, steps=steps,
        machines=tuple(ordered), rows=tuple(rows), owned=tuple(mine),
        cost=cost_of(
            rows, upkeep, store=job.checkpoint.store, num_saves=num_saves, save_bytes=subject.checkpoint_bytes,
        ),
        checkpoint_bytes=subject.checkpoint_bytes, ending=_ending(subject, ordered[0]),
        preemptions_per_day=subject.preemptions_per_day, deadline_h=deadline_h,
        notes=tuple(notes_of(subject, steps, ordered[0], rows)),
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
    pace = Pace(card, measured and measured[0], labelled, span, offloads_of(load)) if card else None
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
    num_nodes, batch = job.resources.num_nodes, global_batch_of(job, ranks)
    flops, cost = flops_of(model, load, labelled, span), None
    if step_s is not None:
        gathered = 2.0 * model.num_parameters if chosen.stage == 3 else 0.0
        cost = Pass(step_s, flops, ranks, card, gathered)
    return Machine(
        accelerator=accelerator, count=ranks, memory_bytes=memory_bytes, options=options, chosen=chosen,
        best=best, micro_batches=load.micro_batches, recompute_every=load.gradient_checkpointing,
        choices=_choices(subject, load, memory_bytes, pace) if chosen.fits is False else (),
        without_offload=_without_offload(model, load, memory_bytes, pace),
        host=host_memory(model, load, chosen.stage, num_nodes),
        losses_s=None if cost is None else losses_s(job, data, cost, batch),
        answers_s=None if cost is None else answers_s(job, subject.num_prompts, cost, batch),
        flops=flops, work=work_of(model, load.gradient_checkpointing, card), step_s=step_s, speed_source=source, save_s=blocked,
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


def _ending(subject: Subject, machine: Machine) -> Ending:
    """Measured by the newest run of the same base, else assumed."""
    measured = (
        run.export_s
        for run in subject.history
        if run.export_s is not None and run.job.spec.model.base == subject.job.model.base
    )
    export_s = next(measured, 2 * subject.model.num_parameters / GB / EXPORT_GB_PER_S + ANSWER_S)
    return Ending(_save_cost(subject, machine.count, machine.step_s or 0.0)[1], export_s)


def _row(offer: Offer, machine: Machine, subject: Subject, steps: Steps, deadline_h: float | None) -> Row:
    why_not = ""
    if _lacks_memory(offer, machine):
        why_not = f"has {offer.host_memory_gib:,.0f} GiB of memory, needs {_on_cpu(offer, machine) / GIB:,.0f}"
    elif machine.chosen.fits is False:
        lacks = -(machine.chosen.spare_bytes or 0) + SAFETY * (machine.memory_bytes or 0)
        why_not = f"lacks {gigabytes(lacks)} of memory"
    elif has_small_host(offer, machine):
        why_not = f"has {offer.host_memory_gib:,.0f} GiB of host memory, needs {machine.host_gib:,}"
    if steps.total is None or machine.step_s is None:
        return Row(offer, not why_not, why_not, None, None, None)
    work_s = steps.total * machine.step_s + len(steps.evaluations) * machine.evaluation_s
    undisturbed = preemption.without_preemption(work_s, machine.save_s, machine.save_interval_s)
    if offer.spot:
        per_day = subject.preemptions_per_day
        hours = _spot_hours(work_s, machine.save_s, machine.save_interval_s, per_day)
    else:
        hours = undisturbed
    start = START_S / 3600 if offer.price_usd_per_hour else 0.0
    hours = dataclasses.replace(hours, p10=hours.p10 + start, mean=hours.mean + start, p90=hours.p90 + start)
    price = offer.price_usd_per_hour
    prices = (hours.p10 * price, hours.mean * price, hours.p90 * price)
    in_time = None if deadline_h is None else hours.p90 <= deadline_h
    return Row(offer, not why_not, why_not, hours, prices, in_time, undisturbed.mean)


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


def _evaluations(job: JobSpec, per_epoch: int | None, total: int | None) -> tuple[int, ...]:
    if total is None or job.train.evaluate_every == "never" or not (job.data.holds_out or job.evaluate.asks):
        return ()
    counts_steps = isinstance(job.train.evaluate_every, int)
    interval = evaluation_interval(job.train, per_epoch or 0) if per_epoch or counts_steps else None
    found = set(range(interval, total + 1, interval)) if interval else set()
    return tuple(sorted(found | {total} | ({0} if job.train.evaluate_at_start else set())))
