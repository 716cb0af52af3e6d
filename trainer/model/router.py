"""Routers of a mixture of experts, computed in fp32 whatever the training precision: in eight bits of mantissa two experts tie,
and which one a token meets is then chance.

Owns how a router is recognised, by its place and its shape, and the arithmetic of its product. Refuses to know families. The
parameter keeps its type (its master is fp32): DeepSpeed casts and partitions it as any other at every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

_WEIGHED_TOO = ("n_shared_experts", "zero_expert_num")
"""Experts that every token meets, and experts that do nothing: some families weigh them with the others."""


def numbers_of_experts(model: Any) -> set[int]:
    """What the configuration says of experts in a layer; empty for a model without."""
    config = model.config.get_text_config()
    found = (getattr(config, key, None) for key in _COUNTS)
    return {number for number in found if isinstance(number, int) and number > 1}


def routers_of(model: Any) -> Iterator[nn.Module]:
    """The module beside the experts of a layer whose weight has a row for each of them, or one inside a module that is called a router."""
    counts = numbers_of_experts(model)
    config = model.config.get_text_config()
    others = [getattr(config, key, None) for key in _WEIGHED_TOO]
    rows = counts | {count + other for count in counts for other in others if isinstance(other, int)}
    for block in model.modules():
        experts = [part for name, part in block.named_children() if _are_experts(name, part, counts)]
        for name, part in block.named_children() if experts else ():
            if part not in experts:
                inside = part.modules() if name in ("router", "gate") else (part,)
                yield from (one for one in inside if _rows_of(one) in rows)


def _are_experts(name: str, part: nn.Module, counts: set[int]) -> bool:
    """Modules of that name, and weights of a matrix for each expert."""
    weight = getattr(part, "weight", None)
    return name == "experts" or (isinstance(weight, nn.Parameter) and weight.dim() == 3 and weight.shape[0] in counts)


def _rows_of(part: nn.Module) -> int | None:
    weight = getattr(part, "weight", None)
    return weight.shape[0] if isinstance(weight, nn.Parameter) and weight.dim() == 2 else None


def compute_in_fp32(model: Any) -> int:
    """Have every router's product computed in fp32 from now on; how many there are. In fp32 nothing changes."""
    found = list(routers_of(model))
    for router in found:
        router.forward = _Exact(
            router.forward, not isinstance(router, nn.Linear)
        )  # on the instance: DeepSpeed's hooks stand around it
    return len(found)


class _Exact:
    """A router's forward with its linear maps in fp32. Logits alone, or the first of several results where those are the
    logits, stay so; what else it gives has the type that it always had."""

    def __init__(self, forward: Callable[..., Any], gives_logits_first: bool) -> None:
        self._forward, self._gives_logits_first = forward, gives_logits_first
        self._types: list[torch.dtype | None] | None = None

    def __call__(self, hidden: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if hidden.dtype == torch.float32:
            return self._forward(hidden, *arguments, **named)
        with _LinearInFp32():
            given = self._forward(hidden, *arguments, **named)
        if not isinstance(given, tuple):
            return given
        if self._types is None:
            with torch.no_grad():
                usual = self._forward(hidden.flatten(0, -2)[:1], *arguments, **named)
            self._types = [one.dtype if isinstance(one, torch.Tensor) else None for one in usual]
        return tuple(
            one if kind is None or (index == 0 and self._gives_logits_first) else one.to(kind)
            for index, (one, kind) in enumerate(zip(given, self._types, strict=True))
        )


class _LinearInFp32(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            args = tuple(_widened(one) for one in args)
            kwargs = {name: _widened(one) for name, one in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value
