"""Which ZeRO stage a job runs at on a card, and what to change where none fits. Pure functions of sizes.

Owns the rule of `zero: auto`: of the stages that fit, the one that sends the fewest bytes. The counting is in memory and
throughput.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from dataclasses import dataclass

from launcher.architecture import Architecture, count
from launcher.cards import Card
from launcher.memory import Memory, Stage, Workload, memory, runs_as
from launcher.spec import JobSpec, global_batch_of
from launcher.throughput import StepFlops, StepTime, Traffic, step_time, step_traffic

SAFETY = 0.03
"""Share of a card's memory that a plan leaves free: the formulas are good to a few per cent, an out-of-memory is not."""


@dataclass(frozen=True, slots=True)
class StageOption:
    """A ZeRO stage on one kind of machine."""

    stage: Stage
    memory: Memory
    traffic: Traffic
    time: StepTime | None
    fits: bool | None
    """None where the card's memory is not known."""
    spare_bytes: int | None


@dataclass(frozen=True, slots=True)
class Choice:
    """A change that makes a job fit, or does not."""

    change: str
    total_bytes: int
    fits: bool


def choose_zero(
    architecture: Architecture, trained: Set[str], load: Workload, memory_bytes: int | None, card: Card | None = None,
    flops: StepFlops | None = None, utilisation: float | None = None,
) -> tuple[StageOption, tuple[StageOption, ...]]:  # fmt: skip
    """(the stage that sends the fewest bytes among those that fit, every stage). The smallest where none fits."""
    options = []
    for stage in (0, 1, 2, 3):
        if runs_as(stage, load.precision) != stage:
            continue  # the same as another one
        used = memory(architecture, trained, load, stage, on_gpu=memory_bytes is not None or card is not None)
        traffic = step_traffic(
            stage=stage, ranks=load.ranks, parameters=architecture.num_parameters,
            trained=sum(count(architecture.shapes[name]) for name in trained), micro_batches=load.micro_batches,
            bytes_per_element=load.element_bytes,
        )  # fmt: skip
        spare = None if memory_bytes is None else memory_bytes - used.total
        fits = None if spare is None or memory_bytes is None else spare >= SAFETY * memory_bytes
        time = (
            step_time(flops, traffic, card, load.ranks, utilisation) if card is not None and flops is not None else None
        )
        options.append(StageOption(stage, used, traffic, time, fits, spare))
    fitting = [option for option in options if option.fits is not False]
    if fitting:
        return min(fitting, key=lambda option: (option.traffic.total_bytes, option.stage)), tuple(options)
    return min(options, key=lambda option: option.memory.total), tuple(options)


def workload(job: JobSpec, ranks: int, on_gpu: bool) -> Workload:
    t = job.train
    batch = global_batch_of(job, ranks)
    return Workload(
        ranks=ranks, micro_batch=t.micro_batch, sequence_length=job.data.sequence_length,
        micro_batches=-(-batch // (ranks * t.micro_batch)), loss_chunk=t.loss_chunk, precision=t.precision,
        gradient_checkpointing=t.gradient_checkpointing, has_overlap=on_gpu,
    )  # fmt: skip


def choices(
    architecture: Architecture, trained: Set[str], load: Workload, memory_bytes: int | None
) -> tuple[Choice, ...]:
    """Single changes and the two or three together, smallest change first; what fits comes first."""
    if memory_bytes is None:
        return ()
    variants: list[tuple[str, Workload, Stage]] = []
    stages: tuple[Stage, ...] = (1, 2, 3)
    for micro in sorted({load.micro_batch, *(m for m in (1, 2, 4) if m < load.micro_batch)}, reverse=True):
        for checkpointing in sorted({load.gradient_checkpointing, True}):
            for chunk in sorted({load.loss_chunk, *(c for c in (512,) if c < load.loss_chunk)}, reverse=True):
                changed = dataclasses.replace(
                    load, micro_batch=micro, micro_batches=load.micro_batches * load.micro_batch // micro,
                    gradient_checkpointing=checkpointing, loss_chunk=chunk,
                )  # fmt: skip
                said = [f"micro_batch: {micro}"] if micro != load.micro_batch else []
                said += ["gradient_checkpointing: true"] if checkpointing != load.gradient_checkpointing else []
                said += [f"loss_chunk: {chunk}"] if chunk != load.loss_chunk else []
                variants += [(", ".join([f"zero: {stage}", *said]), changed, stage) for stage in stages]
    found = []
    for change, changed, stage in variants:
        total = memory(architecture, trained, changed, stage).total
        found.append((change.count(":"), Choice(change, total, memory_bytes - total >= SAFETY * memory_bytes)))
    found.sort(key=lambda item: (not item[1].fits, item[0], item[1].total_bytes))
    return tuple(choice for _, choice in found[:6])
