"""What an optimizer keeps of every trainable parameter, by the optimizer's name: tensors, types, bytes.

The memory of GPUs and hosts, the content and size of a checkpoint, and the cost of a save all follow from it. How the
optimizer is made is in trainer.engine.optimizer, under the same names. Refuses to know torch, layouts and files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "bfloat16", "uint8"]
BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "uint8": 1}
SAVED_DTYPE: Dtype = "float32"
"""Of every tensor in a checkpoint, whatever it is held in, so that any cut of a parameter can be put together from any other."""
SAVED_BYTES = BYTES[SAVED_DTYPE]


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One value for each element of a parameter."""

    name: str
    """Of a moment: its key in the state of torch's optimizer. It also ends the tensor's name in a checkpoint."""
    dtype: Dtype = "float32"
    """Held in while training."""
    block: int = 0
    """Elements that share a scale in fp32; 0 where each has its own exponent."""

    @property
    def held_bytes(self) -> float:
        return BYTES[self.dtype] + (BYTES["float32"] / self.block if self.block else 0)


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """Of one optimizer."""

    moments: tuple[StateTensor, ...]
    """What the updates are computed from besides the gradient."""
    master: StateTensor = StateTensor("master")
    """The weights that are updated; the forward pass uses a copy in its own precision."""
    of_matrices: tuple[StateTensor, ...] | None = None
    """What hidden matrices keep, where that is less: the first of `moments`. A checkpoint holds zeros for the rest."""

    @property
    def tensors(self) -> tuple[StateTensor, ...]:
        """In the order that checkpoints have them in."""
        return (self.master, *self.moments)

    @property
    def is_rounded(self) -> bool:
        """Whether moments are held in blocks with a scale each, so that another cut of the state rounds them once more."""
        return any(moment.block for moment in self.moments)

    def moments_of(self, name: str, shape: tuple[int, ...]) -> tuple[StateTensor, ...]:
        """Of one parameter."""
        return self.of_matrices if self.of_matrices is not None and is_hidden_matrix(name, shape) else self.moments

    def moment_bytes(self, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> float:
        """Of all moments of these parameters, in memory."""
        return sum(
            math.prod(shape) * sum(moment.held_bytes for moment in self.moments_of(name, shape))
            for name, shape in shapes
        )

    @property
    def held_bytes(self) -> float:
        """Of the whole state of one element, in memory, at most."""
        return self.master.held_bytes + sum(moment.held_bytes for moment in self.moments)

    @property
    def saved_bytes(self) -> int:
        """Of the whole state of one element, in a checkpoint."""
        return SAVED_BYTES * len(self.tensors)


OPTIMIZER_STATES: dict[str, OptimizerState] = {
    "adamw": OptimizerState(moments=(StateTensor("exp_avg"), StateTensor("exp_avg_sq"))),
    "adamw_8bit": OptimizerState(
        moments=(StateTensor("exp_avg", "uint8", block=256), StateTensor("exp_avg_sq", "uint8", block=256))
    ),
    "muon": OptimizerState(
        moments=(StateTensor("exp_avg"), StateTensor("exp_avg_sq")), of_matrices=(StateTensor("exp_avg"),)
    ),
}
"""By `train.optimizer`."""

NO_HIDDEN_MATRIX = re.compile(r"embed|lm_head|\bwte\b|\bwpe\b|\bhead\b|router|\bgate\.weight|norm")
"""Matrices whose rows stand for tokens, positions or experts: no linear map between hidden states, which Muon is for."""


def is_hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon updates the parameter; a stack of matrices (experts) counts as such. AdamW updates the others."""
    return len(shape) in (2, 3) and NO_HIDDEN_MATRIX.search(name) is None
