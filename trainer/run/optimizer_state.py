"""What an optimizer keeps of every trainable parameter, by the optimizer's name: tensors, types, bytes.

The memory of GPUs and hosts, the content and size of a checkpoint, and the cost of a save all follow from it. How the
optimizer is made is in trainer.engine.optimizer, under the same names. Refuses to know torch, layouts and files.
"""

from __future__ import annotations

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

    @property
    def held_bytes(self) -> int:
        return BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """Of one optimizer."""

    moments: tuple[StateTensor, ...]
    """What the updates are computed from besides the gradient."""
    master: StateTensor = StateTensor("master")
    """The weights that are updated; the forward pass uses a copy in its own precision."""

    @property
    def tensors(self) -> tuple[StateTensor, ...]:
        """In the order that checkpoints have them in."""
        return (self.master, *self.moments)

    @property
    def moment_bytes(self) -> int:
        """Of all moments of one element."""
        return sum(tensor.held_bytes for tensor in self.moments)

    @property
    def held_bytes(self) -> int:
        """Of the whole state of one element, in memory."""
        return self.master.held_bytes + self.moment_bytes

    @property
    def saved_bytes(self) -> int:
        """Of the whole state of one element, in a checkpoint."""
        return SAVED_BYTES * len(self.tensors)


OPTIMIZER_STATES: dict[str, OptimizerState] = {
    "adamw": OptimizerState(moments=(StateTensor("exp_avg"), StateTensor("exp_avg_sq"))),
}
"""By `train.optimizer`."""
