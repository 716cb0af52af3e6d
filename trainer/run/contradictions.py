"""Settings that contradict each other.

Pure functions of a specification that has the right form, so that a reader of job.yaml can report all of them at once
with their lines.
"""

from __future__ import annotations

import re

from trainer.run.evaluation_problems import Problem, evaluation_problems
from trainer.run.settings.checkpoint import SaveEvery
from trainer.run.spec import TrainSpec


def problems(spec: TrainSpec) -> list[Problem]:
    """Contradictions between settings, both named. Empty where there are none."""
    t, d, found = spec.train, spec.data, []

    def report(where: str, message: str) -> None:
        found.append(Problem(tuple(where.split(".")), message))

    if t.global_batch is not None and t.accumulation is not None:
        report("train.accumulation", "contradicts train.global_batch: each decides the other; remove one")
    if t.global_batch is not None and t.global_batch % t.micro_batch:
        report(
            "train.global_batch", f"{t.global_batch} is not a multiple of train.micro_batch {t.micro_batch}; change one"
        )
    if t.activation_offloading and t.gradient_checkpointing is False:
        report(
            "train.activation_offloading",
            "needs train.gradient_checkpointing: what recomputed layers begin from is what it moves; set that to true",
        )
    if t.compile is True and t.zero == 3:
        report(
            "train.compile",
            "contradicts train.zero 3, which gathers parameters within the layers; write auto or false, or set zero to 1 or 2",
        )
    if t.precision == "fp8" and t.zero == 3:
        report(
            "train.precision",
            "fp8 contradicts train.zero 3, under which matrices in fp8 have not been tried; write bf16, or set zero to 1 or 2",
        )
    if t.precision == "fp8" and t.adapter is not None:
        report(
            "train.precision",
            "fp8 contradicts train.adapter, beside which fp8 has not been tried; write bf16, or remove one",
        )
    if t.offload != "none" and t.zero == 0:
        report("train.offload", "contradicts train.zero 0, which partitions no optimizer; set zero to auto, 1, 2 or 3")
    if t.offload != "none" and t.optimizer != "adamw":
        report(
            "train.offload", f"contradicts train.optimizer {t.optimizer}, which updates on the GPU; set adamw or none"
        )
    if t.warmup_steps is not None and t.warmup_ratio is not None:
        report("train.warmup_ratio", "contradicts train.warmup_steps: both set the warm-up; remove one")
    if t.max_steps is not None and t.warmup_steps is not None and t.warmup_steps >= t.max_steps:
        report(
            "train.warmup_steps",
            f"{t.warmup_steps} steps of warm-up leave none of train.max_steps {t.max_steps}; lower it",
        )
    if t.max_steps is not None and "epochs" in t.model_fields_set:
        report("train.max_steps", "contradicts train.epochs: both set the length; remove one")
    if d.train_on_inputs and d.last_turn_only:
        report("data.last_turn_only", "contradicts data.train_on_inputs: it trains on every token; remove one")
    if d.train_on_inputs and d.train_on_reasoning is not True:
        report("data.train_on_reasoning", "contradicts data.train_on_inputs: it trains on every token; remove one")
    if d.unroll and (d.last_turn_only or d.train_on_inputs or d.train_on_reasoning is not True):
        report("data.unroll", "contradicts what trains only a part, or all, of a conversation; set it to false")
    if d.validation_count is not None and "validation_fraction" in d.model_fields_set:
        report("data.validation_count", "contradicts data.validation_fraction: both size what is held out; remove one")
    if (
        not (d.holds_out or spec.evaluate.asks)
        and t.evaluate_every not in ("epoch", "never")
        and "evaluate_every" in t.model_fields_set
    ):
        report(
            "train.evaluate_every",
            "contradicts data.validation_fraction 0: there is nothing to evaluate on; set a fraction or `never`",
        )
    found += _of_adapter(spec)
    found += evaluation_problems(spec)
    every = spec.checkpoint.every
    if isinstance(every, SaveEvery) and every == SaveEvery():
        report("checkpoint.every", "names no interval: set steps, minutes or epochs, or write `every: auto`")
    for i, source in enumerate(d.sources):
        if source.weight is not None and source.samples is not None:
            found.append(
                Problem(
                    ("data", "sources", i, "weight"),
                    "contradicts `samples` of the same source: both set its size; remove one",
                )
            )
    return found


def _of_adapter(spec: TrainSpec) -> list[Problem]:
    """What contradicts `train.adapter`."""
    adapter, found = spec.train.adapter, list[Problem]()

    def report(where: str, message: str) -> None:
        found.append(Problem(tuple(where.split(".")), message))

    if adapter is None:
        if spec.export.merged:
            report("export.merged", "needs train.adapter: a model whose own weights are trained has nothing to merge")
        return found
    if spec.train.unfrozen is not None:
        report("train.unfrozen", "contradicts train.adapter, which freezes the base; remove one (adapter.modules_to_save trains modules whole)")  # fmt: skip
    if spec.model.init == "random":
        report("train.adapter", "contradicts model.init random: adapters need a base that can do something; remove one")
    if spec.evaluate.tasks and not spec.export.merged:
        report(
            "evaluate.tasks",
            "need a whole model, and train.adapter leaves an adapter; set export.merged: true, or remove one",
        )
    if spec.export.gguf and not spec.export.merged:
        report(
            "export.gguf",
            "needs a whole model, and train.adapter leaves an adapter; set export.merged: true, or remove one",
        )
    if adapter.init == "eva" and spec.train.compile is not False:
        report("train.adapter.init", "eva looks into layers, which train.compile makes into one piece each; use default, or compile: false")  # fmt: skip
    if adapter.type == "qlora" and adapter.changes_base:
        report("train.adapter.init", f"{adapter.init} changes the weights that qlora holds in 4 bits; use default, or type lora")  # fmt: skip
    if adapter.dora and adapter.changes_base:
        report("train.adapter.init", f"{adapter.init} contradicts dora, which keeps the base's magnitudes; use default, or dora: false")  # fmt: skip
    if adapter.target != "all-linear" and isinstance(adapter.target, str):
        try:
            re.compile(adapter.target)
        except re.error as error:
            report("train.adapter.target", f"{adapter.target!r} is no regular expression: {error.msg}")
        if adapter.layers is not None:
            report("train.adapter.layers", "contradicts a target that is a regular expression, which can name layers itself; remove one")  # fmt: skip
    return found
