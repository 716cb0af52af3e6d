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

from trainer.engine import muon
from trainer.engine.adamw_8bit import AdamW8bit
from trainer.run.optimizer_state import OPTIMIZER_STATES, is_hidden_matrix
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
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [(name, p) for name, p in trainable if len(_shape(p)) >= 2]
    decay = {"weight_decay": settings.weight_decay}
    groups: list[dict[str, Any]] = [{"params": [p for _, p in matrices], **decay}]
    if OPTIMIZER_STATES[settings.optimizer].of_matrices is not None:
        hidden = {name for name, p in matrices if is_hidden_matrix(name, _shape(p))}
        groups = [
            {"params": [p for name, p in matrices if name in hidden], **decay, "is_matrix": True},
            {"params": [p for name, p in matrices if name not in hidden], **decay},
        ]
    groups.append({"params": [p for _, p in trainable if len(_shape(p)) < 2], "weight_decay": 0.0})
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


def _adamw_8bit(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    return AdamW8bit(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon)


def _describe_adamw_8bit(t: OptimizerSettings) -> str:
    return f"{_describe_adamw(t)}, moments in 8 bits (bitsandbytes)"


def _muon(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    return muon.Muon(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon)


def _describe_muon(t: OptimizerSettings) -> str:
    return f"Muon, momentum {muon.MOMENTUM}, for hidden matrices; {_describe_adamw(t)}, for the rest"


OPTIMIZERS: dict[str, Kind] = {
    "adamw": Kind(_adamw, _describe_adamw),
    "adamw_8bit": Kind(_adamw_8bit, _describe_adamw_8bit),
    "muon": Kind(_muon, _describe_muon),
}
"""By `train.optimizer`."""


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole tensor, also where ZeRO-3 left a partition of it here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
