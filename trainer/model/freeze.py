"""Freezing: sets `requires_grad` from the specification's patterns and says what that means. Refuses to guess."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from trainer.model.packed import beside_language
from trainer.run.exits import BadInput
from trainer.run.patterns import match


@dataclass(frozen=True)
class FreezeReport:
    num_parameters: int
    num_trainable: int
    trainable: tuple[str, ...]
    """Names of the trainable parameters."""
    num_beside: int = 0
    """Parameters that a text never reaches (the towers of a multimodal model); they stay as they are."""

    def __str__(self) -> str:
        share = 100 * self.num_trainable / self.num_parameters
        beside = f"; {self.num_beside:,} beside its language part stay as they are" if self.num_beside else ""
        return f"training {self.num_trainable:,} of {self.num_parameters:,} parameters ({share:.1f}%){beside}"


def apply(model: nn.Module, patterns: Sequence[str] | None) -> FreezeReport:
    """Freeze what no pattern hits; None trains everything. A shared tensor is trained when any of its names is hit. What is
    beside the language part of a multimodal model is frozen, and no pattern hits it.

    Raises BadInput for a pattern that hits nothing or is no regular expression.
    """
    beside = beside_language(model)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in beside]
    if patterns is None:
        trainable = set(names)
    else:
        try:
            matches = match(patterns, names)
        except re.error as error:
            raise BadInput(f"train.unfrozen: {error.pattern!r} is not a regular expression: {error.msg}") from error
        if matches.missed:
            raise BadInput(_explain_misses(matches.missed, names))
        trainable = set(matches.trainable)
    by_tensor: dict[int, bool] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_tensor[id(parameter)] = by_tensor.get(id(parameter), False) or name in trainable
    total = trained = untouched = 0
    kept = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(by_tensor[id(parameter)])
        total += parameter.numel()
        untouched += parameter.numel() if name in beside else 0
        if parameter.requires_grad:
            trained += parameter.numel()
            kept.append(name)
    if not kept:
        raise BadInput("train.unfrozen leaves nothing to train: add a pattern")
    return FreezeReport(total, trained, tuple(kept), untouched)


def _explain_misses(missed: Sequence[str], names: Sequence[str]) -> str:
    shown = ", ".join(repr(pattern) for pattern in missed[:3])
    more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
    near = difflib.get_close_matches(missed[0].strip("^$"), names, n=1, cutoff=0.5)
    hint = f"; the nearest parameter is {near[0]!r}" if near else ""
    return f"train.unfrozen: {shown}{more} matches no parameter{hint}. `dolphin spectrum names MODEL` lists them."
