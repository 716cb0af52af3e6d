"""Which ZeRO stage a job runs at on a card, and what to change where none fits. Pure functions of sizes.

Owns the rule of `zero: auto`: of the stages that fit, the fastest; of those as fast, the one with room. The counting is
in `gpu_memory` and `throughput`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.jobfile.settle import global_batch_of
from launcher.jobfile.spec import JobSpec
from launcher.models.architecture import TrainedModel
from launcher.plan.gpu_memory import (
    QUANTISED_BYTES,
    Memory,
    Stage,
    Workload,
    memory,
    offloaded_activations,
    runs_as,
)
from launcher.plan.gpus import Card
from launcher.plan.host_memory import host_memory, node_gib
from launcher.plan.throughput import (
    OffloadCost,
    StepFlops,
    StepTime,
    Traffic,
    offload_cost,
    step_flops,
    step_time,
    step_traffic,
    unpacking_s,
)
from trainer.run.optimizer_state import OPTIMIZER_STATES

SAFETY = 0.09
"""Share of a card's memory that a plan leaves free. The formulas are good to 3% against PyTorch's own account; what surrounds it
(context, communicators, fragmentation) is from the literature and was measured on no card."""
AS_FAST = 0.02
"""Stages whose predicted seconds differ by no more are equally fast: the prediction is not better than that."""
ROOMY = 0.18
"""Share of a card's memory that is room enough: beyond it a stage that sends less is worth more than further room."""


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
    step_s: float | None
    """Seconds of a step then."""
    host_gib: int | None
    """Memory that the node must have, where optimizer or activations are there."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What decides how long a step takes on a card, besides the workload."""

    card: Card
    utilisation: float | None
    """Measured by a run that offloaded as the job does, what that costs included; None takes the card's."""
    labelled_share: float
    attention_span: float
    offloads: tuple[bool, bool]
    """Whether the job offloads its optimizer, and its activations."""

    def flops(self, model: TrainedModel, load: Workload) -> StepFlops:
        return flops_of(model, load, self.labelled_share, self.attention_span)

    def step(self, model: TrainedModel, load: Workload, stage: Stage) -> StepTime:
        utilisation = self.utilisation if offloads_of(load) == self.offloads else None
        offload = OffloadCost(2.0 * load.micro_batches * offloaded_activations(model, load), 0.0)
        if load.offloads:
            offload += offload_cost(
                stage=stage, ranks=load.ranks, trained=model.num_trained,
                micro_batches=load.micro_batches, bytes_per_element=load.element_bytes, optimizer=load.optimizer,
            )  # fmt: skip
        flops, traffic = self.flops(model, load), traffic_of(model, load, stage)
        found = step_time(flops, traffic, self.card, load.ranks, utilisation, offload if utilisation is None else None)
        if not model.num_quantised or utilisation is not None:
            return found
        size = QUANTISED_BYTES + load.element_bytes
        unpacking = unpacking_s(model, self.card, load.micro_batches, size, load.gradient_checkpointing)
        return dataclasses.replace(found, unpacking_s=unpacking)


def offloads_of(load: Workload) -> tuple[bool, bool]:
    """Of the optimizer, and of activations."""
    return load.offloads, load.offloads_activations


def flops_of(model: TrainedModel, load: Workload, labelled_share: float, attention_span: float) -> StepFlops:
    """Of an optimizer step over all GPUs."""
    tokens = load.ranks * load.micro_batches * load.tokens
    return step_flops(
        model, tokens=tokens, labelled=tokens * labelled_share, attention_span=attention_span,
        gradient_checkpointing=load.gradient_checkpointing,
    )  # fmt: skip


def traffic_of(model: TrainedModel, load: Workload, stage: Stage) -> Traffic:
    return step_traffic(
        stage=stage, ranks=load.ranks, parameters=model.num_parameters,
        trained=model.num_trained, micro_batches=load.micro_batches,
        bytes_per_element=load.element_bytes,
    )  # fmt: skip


def choose_zero(
    model: TrainedModel, load: Workload, memory_bytes: int | None, pace: Pace | None = None
) -> tuple[StageOption, tuple[StageOption, ...]]:
    """(the best stage of those that fit, every stage). The smallest where none fits.

    Ranked by predicted seconds; of those as fast (AS_FAST), the one with the most memory to spare, and of those that have
    enough of it (ROOMY), or where seconds and memory are not known, the one that sends the fewest bytes.
    """
    options = []
    for stage in stages_of(load):
        used = memory(model, load, stage, on_gpu=memory_bytes is not None or pace is not None)
        spare = None if memory_bytes is None else memory_bytes - used.total
        fits = None if spare is None or memory_bytes is None else spare >= SAFETY * memory_bytes
        time = pace.step(model, load, stage) if pace is not None else None
        options.append(StageOption(stage, used, traffic_of(model, load, stage), time, fits, spare))
    fitting = [option for option in options if option.fits is not False]
    if fitting:
        slowest = (1 + AS_FAST) * min(_seconds(option) for option in fitting)
        fast = [option for option in fitting if _seconds(option) <= slowest]
        return min(fast, key=lambda option: _preference(option, memory_bytes)), tuple(options)
    return min(options, key=lambda option: option.memory.total), tuple(options)


def _seconds(option: StageOption) -> float:
    return option.time.total_s if option.time is not None else 0.0


def _preference(option: StageOption, memory_bytes: int | None) -> tuple[float, float, int]:
    """The smallest is the best, of stages that are equally fast."""
    room = 0.0 if option.spare_bytes is None or not memory_bytes else min(option.spare_bytes / memory_bytes, ROOMY)
    return -room, option.traffic.total_bytes, option.stage


def stages_of(load: Workload) -> tuple[Stage, ...]:
    """Stages that differ: 0 in bf16 is run as 1, and has no partition of the optimizer to offload. A single rank on a CPU
    has nothing to partition and nobody to send to."""
    if load.ranks == 1 and not load.has_overlap and not load.offloads:
        return (0,)
    stages: tuple[Stage, ...] = (0, 1, 2, 3)
    return tuple(s for s in stages if runs_as(s, load.precision) == s and not (s == 0 and load.offloads))


def safe_stage(ranks: int, on_gpu: bool, offloads: bool) -> Stage:
    """The stage where the model's shape or the card's memory is not known: on GPUs the one that needs least."""
    if ranks == 1 and not offloads:
        return 0
    return 3 if on_gpu else 1


def workload(job: JobSpec, ranks: int, on_gpu: bool) -> Workload:
    t = job.train
    batch = global_batch_of(job, ranks)
    return Workload(
        ranks=ranks, micro_batch=t.micro_batch, sequence_length=job.data.sequence_length,
        micro_batches=-(-batch // (ranks * t.micro_batch)), loss_chunk=t.loss_chunk, precision=t.stored_precision,
        gradient_checkpointing=1 if t.gradient_checkpointing == "auto" else t.recompute_every, has_overlap=on_gpu, offloads=t.offload == "optimizer",
        optimizer=OPTIMIZER_STATES[t.optimizer], offloads_activations=t.activation_offloading,
    )  # fmt: skip


RECOMPUTATIONS = (0, 8, 4, 3, 2, 1)
"""What `gradient_checkpointing: auto` tries: one layer in so many, from no recomputation to all."""


def least_recomputation(
    model: TrainedModel, load: Workload, memory_bytes: int | None, pace: Pace | None, stage: Stage | None
) -> Workload:
    """The workload with the fastest recomputation that fits, at `stage` or, where None, at the best one; with all of it where
    none fits or the memory is not known."""
    fitting = []
    for every in RECOMPUTATIONS if memory_bytes is not None else ():
        if load.offloads_activations and not every:
            continue  # there would be nothing to offload
        changed = dataclasses.replace(load, gradient_checkpointing=every)
        best, options = choose_zero(model, changed, memory_bytes, pace)
        option = best if stage is None else next(o for o in options if o.stage == runs_as(stage, load.precision))
        if option.fits:
            fitting.append((_seconds(option), changed))
    if not fitting:
        return dataclasses.replace(load, gradient_checkpointing=1)
    return min(fitting, key=lambda found: found[0])[1]


def choices(
    model: TrainedModel, load: Workload, memory_bytes: int | None, pace: Pace | None = None,
    num_nodes: int = 1,
) -> tuple[Choice, ...]:  # fmt: skip
    """What fits with no change more than it takes, the fewest changes first and of those the fastest; then what each
    single change comes to that does not suffice. Where nothing fits, what comes nearest is first."""
    if memory_bytes is None:
        return ()
    best: dict[frozenset[str], Choice] = {}
    for changed, said in _variants(load):
        found = []
        for stage in stages_of(changed):
            total = memory(model, changed, stage).total
            step_s = pace.step(model, changed, stage).total_s if pace is not None else None
            host = node_gib(host_memory(model, changed, stage, num_nodes)) if any(offloads_of(changed)) else None
            change = ", ".join([f"zero: {stage}", *said])
            found.append(Choice(change, total, memory_bytes - total >= SAFETY * memory_bytes, step_s, host))
        fitting = [choice for choice in found if choice.fits]
        best[frozenset(said)] = (
            min(fitting, key=lambda choice: (choice.step_s or 0.0, choice.total_bytes))
            if fitting
            else min(found, key=lambda choice: choice.total_bytes)
        )
    enough = [said for said, choice in best.items() if choice.fits]
    least = [said for said in enough if not any(other < said for other in enough)]
    least.sort(key=lambda said: (len(said), best[said].step_s or 0.0, best[said].total_bytes))
    short = sorted((said for said in best if len(said) == 1 and said not in enough), key=lambda s: best[s].total_bytes)
    if not least:
        short.insert(0, min(best, key=lambda said: best[said].total_bytes))
    return tuple(best[said] for said in [*least, *dict.fromkeys(short)])


def _variants(load: Workload) -> Iterator[tuple[Workload, list[str]]]:
    """The workload with settings changed that alter no result, and the changes as one writes them in a job."""
    micros = [load.micro_batch, *(m for m in (4, 2, 1) if m < load.micro_batch and load.micro_batch % m == 0)]
    checkpointings = sorted({load.gradient_checkpointing, 1})
    chunks = [load.loss_chunk, *(c for c in (512,) if c < load.loss_chunk)]
    offloads = sorted({load.offloads, True})
    moves = sorted({load.offloads_activations, True})
    for micro, checkpointing, chunk, offload, move in itertools.product(
        micros, checkpointings, chunks, offloads, moves
    ):
        if move and not checkpointing:
            continue
        said = [f"micro_batch: {micro}"] if micro != load.micro_batch else []
        said += ["gradient_checkpointing: true"] if checkpointing != load.gradient_checkpointing else []
        said += ["activation_offloading: true"] if move != load.offloads_activations else []
        said += [f"loss_chunk: {chunk}"] if chunk != load.loss_chunk else []
        said += ["offload: optimizer"] if offload != load.offloads else []
        yield (
            dataclasses.replace(
                load, micro_batch=micro, micro_batches=load.micro_batches * load.micro_batch // micro,
                gradient_checkpointing=checkpointing, loss_chunk=chunk, offloads=offload,
                offloads_activations=move,
            ),
            said,
        )  # fmt: skip
