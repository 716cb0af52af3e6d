"""Host memory that a job takes on one node: what saves copy, what an offloaded optimizer keeps. Pure functions of sizes.

Owns the formulas, as DeepSpeed 0.19 lays the state out; those of the GPU are in `gpu_memory`. Sizes are bytes, parameters are of
all ranks. Held against PyTorch's own accounting by tests/process/test_memory_formulas.py. Legend: as in `gpu_memory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from launcher.models.architecture import TrainedModel
from launcher.plan.gpu_memory import Stage, Workload, moments_bytes, offloaded_activations, runs_as
from launcher.units import GIB

PROCESS = 4 * GIB
"""A rank's own: Python, torch's and CUDA's libraries, batches; 2 to 4 GB resident before any model."""

RESERVE = 0.05
"""Share of a node's memory that is left to its system and its page cache."""


def node_gib(parts: Mapping[str, int]) -> int:
    """What a node must have to hold the parts, in GiB, as clouds count it."""
    return math.ceil(sum(parts.values()) / (1 - RESERVE) / GIB)


def host_memory(model: TrainedModel, load: Workload, stage: Stage, num_nodes: int = 1) -> dict[str, int]:
    """Bytes by part on the node that needs most, which is the first: its first rank reads the base for all before
    GPUs take it. The finished model is written file by file as it is gathered, and needs less. A save of an offloaded optimizer
    needs no copy: it is written from where it is.
    """
    ranks = -(-load.ranks // num_nodes)
    parts = {
        "copies for saves": 0 if load.offloads else load.optimizer.saved_bytes * model.num_trained / num_nodes,
        "base as it is read": load.element_bytes * model.num_parameters,
        "processes": ranks * PROCESS,
        "activations": ranks * offloaded_activations(model, load),
    }
    if load.offloads:
        parts |= {name: ranks * size for name, size in offloaded(model, load, stage).items()}
    return {name: int(size) for name, size in parts.items() if size}


def offloaded(model: TrainedModel, load: Workload, stage: Stage) -> dict[str, float]:
    """Of one rank: masters and moments of its partition, their fp32 gradients, and what goes to and from the GPU.

    Stage 3 has the gradients twice, as they accumulate and as the update takes them. Stages 1 and 2 have the updated
    partition in e as well, and room for the largest gradient; stage 2 in fp32 accumulates whole gradients of what its
    partition touches, at most its size and one parameter more.
    """
    stage = runs_as(stage, load.precision)
    e, partition = load.element_bytes, model.num_trained / load.ranks
    parts = {
        "master weights": load.optimizer.master.held_bytes * partition,
        "optimizer": moments_bytes(model, load.optimizer) / load.ranks,
        "gradients": 4 * partition,
    }
    if stage == 3:
        parts["gradients"] *= 2
        return parts
    parts["passage"] = e * (partition + model.largest_trained)
    if stage == 2 and e == 4 and load.micro_batches > 1:
        parts["gradients"] += e * (partition + model.largest_trained)
    return parts
