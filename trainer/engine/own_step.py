"""The loop that an optimizer of our own goes through: every parameter that has a gradient, in its group.

Refuses to know what an update is. DeepSpeed calls `step` without a closure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch


class OwnStep(torch.optim.Optimizer, ABC):
    """An optimizer that says what happens to one parameter."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        if closure is not None:
            raise ValueError("a closure is not called here")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, self.state[p], group)

    @abstractmethod
    def update(self, p: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change `p` by its gradient; `state` is its own, empty before its first update."""
