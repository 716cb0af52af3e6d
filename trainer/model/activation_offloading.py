"""`train.activation_offloading`: what recomputed layers begin from lies in host memory between their forward and their backward.

Owns what is moved: the hidden states that torch's checkpoint keeps of each recomputed layer, and nothing else. The copies run in
the GPU's own order, from and to page-locked memory, so that neither the host waits for them nor a result changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.autograd.graph import save_on_cpu

KEY = "_gradient_checkpointing_func"
"""Where transformers leaves torch's checkpoint at whatever may be recomputed."""


def apply(model: nn.Module, device: str) -> None:
    """To a model whose recomputation is on. On a CPU the host is where they are: nothing moves."""
    for part in model.modules():
        if KEY in vars(part):
            setattr(part, KEY, _around(vars(part)[KEY], device))


def _around(checkpoint: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Within the layer torch's checkpoint has hooks of its own, which come before these: they meet its inputs alone."""

    def run(*arguments: Any, **named: Any) -> Any:
        with save_on_cpu(pin_memory=device == "cuda"):
            return checkpoint(*arguments, **named)

    return run
