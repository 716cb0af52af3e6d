"""EVA: adapters that begin with the directions in which the inputs of their layers vary most over the job's own data
(explained variance adaptation, Paischer et al. 2024, arXiv 2410.07170).

Owns which inputs count, when a layer has seen enough, and putting the directions into A; B is zero, so that nothing is added to the
base yet. peft's incremental principal components do the arithmetic. Every layer keeps its rank: the paper's redistribution of
ranks is not done. The layers are asked in forward passes of the sharded model, so that any stage and a base in 4 bits will do, over
batches that are the same on all ranks whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.data.batch import Batch, Share
from trainer.data.plan import DataPlan
from trainer.engine import zero_state
from trainer.engine.engine import Engine

SIMILARITY = 0.99
"""Cosine of a direction before and after a batch from which on it stands (tau in peft's EvaConfig)."""
MAX_BATCHES = 128
"""A layer that has not settled by then keeps the directions that it has."""


@dataclass
class _Layer:
    """What is known of the inputs of one layer, and of all that get the very same ones."""

    names: list[str]
    """Parameters A, by transformers' names."""
    components: Any
    """peft's IncrementalPCA."""
    waiting: list[torch.Tensor] = field(default_factory=list)
    is_settled: bool = False

    def see(self, rows: torch.Tensor) -> None:
        """Inputs (N, features) of the labelled positions of a batch, counted once there are enough of them."""
        self.waiting.append(rows.float())
        seen = torch.cat(self.waiting)
        if len(seen) < 2 * self.components.n_components:
            return
        self.waiting = []
        before = self.found
        self.components.partial_fit(seen)
        if before is not None:
            similar = torch.nn.functional.cosine_similarity(self.components.components_, before)
            self.is_settled = bool((similar >= SIMILARITY).all())

    @property
    def found(self) -> torch.Tensor | None:
        """(rank, features), of length 1 and orthogonal."""
        found = getattr(self.components, "components_", None)
        return found.clone() if found is not None else None


def initialise(engine: Engine, plan: DataPlan, alive: Callable[[], None]) -> str:
    """All ranks, before the first step of a run that nothing is resumed of: put the directions into every A. Returns a line for
    the log. `alive` is called after every batch."""
    share = Share(0, 1, engine.job.spec.train.micro_batch)

    def forward(batch: Batch) -> None:
        engine.evaluate(batch)
        alive()

    found, num_batches = directions(engine.model, _batches(plan, share), forward)
    for tensor in found.values():
        if dist.is_initialized():
            dist.broadcast(tensor, 0)  # GPUs may round otherwise
    zero_state.set_masters(engine.deepspeed, found)
    num_layers = sum(1 for name, _ in _adapted(engine.model))
    return f"eva: {len(found)} of {num_layers} adapters begin with the directions of {num_batches} batches"


def directions(
    model: nn.Module, batches: Iterable[Batch], forward: Callable[[Batch], object]
) -> tuple[dict[str, torch.Tensor], int]:
    """What each A begins with, by its transformers name, and how many batches were asked for it.

    `forward` runs a batch through `model` without gradients. A layer that saw too little, or whose inputs have fewer features
    than A has rows, is not in it.
    """
    layers: dict[str, _Layer] = {}
    names = {id(module): name for name, module in _adapted(model)}
    current: list[Batch] = []
    last: list[Any] = [None, None]  # the input of the layer before, and that layer: q, k and v get the same tensor

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        name = names[id(module)]
        if inputs[0] is last[0] and name not in layers:
            layers[name] = last[1]
            last[1].names.append(name)
        layer = layers.get(name) or layers.setdefault(name, _layer(name, module))
        if layer.names[0] == name and not layer.is_settled:
            layer.see(_labelled(inputs[0], current[0]))
        last[:] = [inputs[0], layer]

    handles = [module.register_forward_pre_hook(hook) for _, module in _adapted(model) if _takes(module)]
    count = 0
    try:
        for batch in batches:
            current[:], last[:] = [batch], [None, None]
            forward(batch)
            count += 1
            if layers and all(layer.is_settled for layer in layers.values()):
                break
    finally:
        for handle in handles:
            handle.remove()
    found = {name: layer.found for name, layer in layers.items()}
    return {f"{name}.lora_A.default.weight": one.float() for name, one in found.items() if one is not None}, count


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with a LoRA adapter."""
    for name, module in model.named_modules():
        if "default" in getattr(module, "lora_A", {}):
            yield name, module


def _takes(module: Any) -> bool:
    return bool(module.in_features >= module.r["default"])


def _layer(name: str, module: Any) -> _Layer:
    from peft.utils.incremental_pca import IncrementalPCA

    rank = module.r["default"]
    is_wide = module.in_features >= 2 * rank  # torch's decomposition for few components wants room
    return _Layer([name], IncrementalPCA(n_components=rank, copy=True, lowrank=is_wide, lowrank_seed=42))


def _labelled(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(N, features) of the positions that have a label; of an expert's own tokens, all."""
    rows = hidden.detach().reshape(-1, hidden.shape[-1])
    if len(rows) != batch.labels_BT.numel():
        return rows
    return rows[batch.labelled_N.to(rows.device)]


def _batches(plan: DataPlan, share: Share) -> Iterator[Batch]:
    """The first micro batches of the plan, the same for any number of ranks."""
    per_step = plan.num_micro_batches(share)
    for number in range(min(MAX_BATCHES, per_step * plan.total_steps)):
        yield plan.batch(number // per_step, share, number % per_step)
