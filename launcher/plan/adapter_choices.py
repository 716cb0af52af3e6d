"""What LoRA and QLoRA would take where a job does not fit: another result, for a person to choose, with its numbers."""

from __future__ import annotations

import dataclasses

from launcher.models.adapters import adapted
from launcher.models.architecture import Architecture
from launcher.plan.gpu_memory import Workload
from launcher.plan.host_memory import host_memory, node_gib
from launcher.plan.zero_stage import Choice, Pace, choose_zero
from trainer.run.settings.adapter import AdapterSpec


def adapter_choices(
    architecture: Architecture, load: Workload, memory_bytes: int | None, pace: Pace | None, num_nodes: int
) -> tuple[Choice, ...]:
    """The default adapters at the job's own batch and length, with activations recomputed; none where the card is not known."""
    if memory_bytes is None:
        return ()
    found = []
    changed = dataclasses.replace(load, gradient_checkpointing=1, offloads=False)
    for kind in ("lora", "qlora"):
        spec = AdapterSpec.model_validate({"type": kind})
        model = adapted(architecture, spec)
        option, _ = choose_zero(model, changed, memory_bytes, pace)
        said = [f"zero: {option.stage}", f"adapter: {{type: {kind}, rank: {spec.rank}}}"]
        said += [] if load.gradient_checkpointing == 1 else ["gradient_checkpointing: true"]
        found.append(
            Choice(
                ", ".join(said), option.memory.total, bool(option.fits), option.time.total_s if option.time else None,
                node_gib(host_memory(model, changed, option.stage, num_nodes)),
            )
        )  # fmt: skip
    return tuple(found)
