"""The optimizer: its construction by name, its parameter groups, and the learning rate as a pure function of the step.

What each optimizer keeps of a parameter is in trainer.run.optimizer_state, under the same names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.run.settings.train import OptimizerSettings


def warmup_steps(settings: OptimizerSettings, total_steps: int) -> int:
    """Steps of linear warm-up."""
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return math.ceil((settings.warmup_ratio or 0.0) * total_steps)


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Learning rate of the update that makes step `step` + 1, so `step` is 0 for the first.

    Linear warm-up from 0, then half a cosine, a line, or a constant, down to `min_lr_ratio` of the peak. The first
    update has rate peak / warm-up, not 0: a step with rate 0 would be paid for and change nothing.
    """
    peak, warm = settings.learning_rate, warmup_steps(settings, total_steps)
    if step < warm:
        return peak * (step + 1) / warm
    if settings.schedule == "constant":
        return peak
    progress = min(1.0, (step - warm) / max(1, total_steps - warm))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1 - progress
    return peak * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * shape)


def build(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """`train.optimizer` over the trainable parameters: matrices with weight decay, vectors (norms, biases) without.

    Called before DeepSpeed partitions the model: under ZeRO-3 the shapes are gone afterwards.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if _ndim(p) >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if _ndim(p) < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[settings.optimizer].make([group for group in groups if group["params"]], settings)


def described(settings: OptimizerSettings) -> str:
    """The optimizer and what it was set to, for a model card."""
    return OPTIMIZERS[settings.optimizer].describe(settings)


@dataclass(frozen=True, slots=True)
class Kind:
    """An optimizer that a job can name."""

    make: Callable[[list[dict[str, Any]], OptimizerSettings], torch.optim.Optimizer]
    """Of parameter groups, which state their weight decay."""
    describe: Callable[[OptimizerSettings], str]


def _adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,  # on a CPU too, where `foreach` takes five times as long (bench/plan.md)
    )


def _describe_adamw(t: OptimizerSettings) -> str:
    return f"AdamW, betas {t.betas[0]} and {t.betas[1]}, epsilon {t.epsilon}"


OPTIMIZERS: dict[str, Kind] = {"adamw": Kind(_adamw, _describe_adamw)}
"""By `train.optimizer`."""


def _ndim(parameter: nn.Parameter) -> int:
    """Dimensions of the whole tensor, also where ZeRO-3 left a partition of it here."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
