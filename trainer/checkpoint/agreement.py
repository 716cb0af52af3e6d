"""Agreement: what ranks tell each other around reads and writes, in a process group of its own.

On the CPU, so that ranks can wait for each other while GPUs are busy or done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from trainer.engine.process_group import PATIENCE
from trainer.run.exits import BadInput
from trainer.run.stores.base import StoreError


class Agreement:
    """Every method is called by all ranks, in the same order."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def first(self, value: Any) -> Any:
        """Rank 0's value."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        values: list[Any] = [None] * self._world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def done_first(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0, which alone does it; its BadInput or StoreError is raised on all ranks."""
        outcome: tuple[Any, Exception | None] = (None, None)
        if self._rank == 0:
            try:
                outcome = (work(), None)
            except (BadInput, StoreError) as error:
                outcome = (None, error)
        value, raised = self.first(outcome)
        if raised is not None:
            raise raised
        return value

    def wait_for_all(self) -> None:
        dist.barrier(group=self._group)
