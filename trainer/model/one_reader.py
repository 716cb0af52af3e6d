"""One rank reads the base's weights, and the others get them from it: else a node would hold them once for every GPU.

The other ranks make a model of the same shape whose memory is not touched, which costs none. DeepSpeed sends every parameter from
rank 0 as it places it: one at a time under ZeRO-3, where each rank keeps its partition. Refuses to know DeepSpeed and files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.initialization import no_init_weights

from trainer.run.exits import BadInput


def of_first_rank(read: Callable[[], nn.Module], shape: Callable[[], nn.Module]) -> nn.Module:
    """All ranks: the model of `read` on rank 0, that of `shape` elsewhere, with parameters of the same types whose values are
    not there yet, and buffers with theirs. Where `read` raises BadInput all ranks do."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return read()
    told: list[Any] = [None, None]
    model: nn.Module | None = None
    failed: BadInput | None = None
    if dist.get_rank() == 0:
        try:
            model = read()
            told[1] = _types(model), dict(model.named_buffers())
        except BadInput as error:
            failed = error
            told[0] = str(error)
    dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise failed or BadInput(told[0])
    if model is not None:
        return model
    with no_init_weights():
        model = shape()
    if callable(getattr(model, "tie_weights", None)):
        model.tie_weights()
    types, buffers = told[1]
    _fit(model, types)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.data = buffers[name]
    return model


def _types(model: nn.Module) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(name, tuple(p.shape), p.dtype) for name, p in model.named_parameters()]


def _fit(model: nn.Module, types: list[tuple[str, tuple[int, ...], torch.dtype]]) -> None:
    """Give the parameters the types that they have on rank 0. Raises RuntimeError where others are there."""
    mine = [(name, shape) for name, shape, _ in _types(model)]
    if mine != [(name, shape) for name, shape, _ in types]:
        wrong = sorted(set(mine) ^ {(name, shape) for name, shape, _ in types})[:3]
        raise RuntimeError(f"the model has other parameters than on rank 0: {wrong}")
    for parameter, (_, shape, dtype) in zip(model.parameters(), types, strict=True):
        if parameter.dtype != dtype:
            parameter.data = torch.empty(shape, dtype=dtype)
