"""What a person should know of a plan, a sentence each. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.backends.base import Offer
from launcher.jobfile.spec import JobSpec
from launcher.plan import spot_notice
from launcher.plan.launch_plan import Machine, Row, Steps, Subject
from launcher.plan.zero_stage import StageOption
from launcher.units import GB, gigabytes

AT_HOME = ("local", "docker")
"""Backends that rent nothing and choose no place."""
FOR_WHOLE_WEIGHTS = 5e-5
"""A peak learning rate below this is one for whole weights; adapters usually take 1e-4 to 3e-4 (arXiv 2106.09685, 2305.14314)."""


def notes_of(subject: Subject, steps: Steps, machine: Machine, rows: Sequence[Row]) -> list[str]:
    job, data, notes = subject.job, subject.data, []
    backends = {row.offer.backend for row in rows}
    named = [key for key in ("infra", "regions", "max_hourly_cost") if getattr(job.resources, key)]
    if named and job.resources.gpu_name is None and backends and backends <= set(AT_HOME):
        notes.append(
            f"{', '.join(f'resources.{key}' for key in named)}: not asked for: without resources.accelerators the job runs here "
            f"({', '.join(sorted(backends))}); --on sky takes it there"
        )
    if job.train.precision == "fp8":
        notes.append("train.precision fp8: hours are counted as for bf16; what fp8 gains has not been measured")
    if job.train.adapter is not None and job.train.learning_rate < FOR_WHOLE_WEIGHTS:
        notes.append(
            f"train.learning_rate {job.train.learning_rate:g} is one for whole weights: adapters usually take 1e-4 to 3e-4"
        )
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
    if any(has_small_host(row.offer, machine) for row in rows):
        notes.append(
            f"a launch asks for nodes with {machine.host_gib:,} GiB of host memory; resources.memory_gb overrules that"
        )
    if machine.accelerator is not None and machine.step_s is None:
        notes.append(f"{machine.accelerator} is not in the table of cards: no hours and no price of a run")
    after = [
        name
        for name, is_asked in (
            ("evaluate.tasks", bool(job.evaluate.tasks)),
            ("export.gguf", bool(job.export.gguf)),
            ("push", job.push is not None),
        )
        if is_asked
    ]
    if after:
        limit = (
            f", evaluations {job.evaluate.max_minutes:g} minutes at most"
            if job.evaluate.tasks and job.evaluate.max_minutes
            else ""
        )
        notes.append(
            f"{' and '.join(after)} come after training, on the same node: their time is not in the hours{limit}"
        )
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


def has_small_host(offer: Offer, machine: Machine) -> bool:
    """Whether the node's own memory is too little beside its GPUs'; of a CPU `_lacks_memory` says it."""
    known = offer.host_memory_gib is not None and offer.accelerator is not None
    return known and (offer.host_memory_gib or 0) < machine.host_gib
