"""Snapshot: a copy of this rank's state in host memory, all that a save needs from the training thread.

Owns the buffers, which are taken once and used by every save: page-locked where there is a GPU, so that the copy runs
at the bus's speed. Refuses to know files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from trainer import zero_state
from trainer.checkpoint import random_state
from trainer.checkpoint.manifest import ELEMENT_BYTES
from trainer.checkpoint.shards import TENSOR_NAMES, plan_files


@dataclass(slots=True)
class ShardSnapshot:
    """Content of one shard file."""

    pieces: list[tuple[str, int, int]]
    """(name, start, numel)."""
    data: torch.Tensor
    """fp32: master, exp_avg, exp_avg_sq of each piece, one after the other."""

    def bytes(self) -> memoryview:
        return memoryview(self.data.numpy()).cast("B")


@dataclass(slots=True)
class Snapshot:
    """Host memory for one rank's state; `take` fills it again and again."""

    shards: list[ShardSnapshot] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    random: bytes = b""
    optimizer_step: int = 0

    def reserve(self, engine: Any) -> None:
        """Take the memory for `engine`'s state, before the first step rather than within the first save."""
        if self.shards:
            return
        self.shapes = zero_state.trainable_shapes(engine)
        pieces = [(shard.name, shard.start, shard.numel) for shard in zero_state.iterate_shards(engine)]
        on_gpu = torch.cuda.is_available() and engine.device.type == "cuda"
        for file in plan_files(pieces):
            num_elements = sum(numel for _, _, numel in file) * len(TENSOR_NAMES)
            data = torch.zeros(num_elements, dtype=torch.float32, pin_memory=on_gpu)
            self.shards.append(ShardSnapshot(file, data))

    def take(self, engine: Any) -> None:
        """Copy the state as it is now. Returns when the copy is complete: the next step may change the state."""
        self.reserve(engine)
        targets = (
            (piece, shard.data, position) for shard in self.shards for piece, position in _positions(shard.pieces)
        )
        for live, (piece, data, position) in zip(zero_state.iterate_shards(engine), targets, strict=True):
            if piece != (live.name, live.start, live.numel):
                raise RuntimeError(f"the engine's state has changed its layout: {piece[0]} where {live.name} is")
            for index, tensor in enumerate((live.master, live.exp_avg, live.exp_avg_sq)):
                data.narrow(0, position + index * live.numel, live.numel).copy_(tensor, non_blocking=True)
        if torch.cuda.is_available() and engine.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self.random = random_state.capture()
        self.optimizer_step = zero_state.optimizer_step(engine)

    @property
    def size_bytes(self) -> int:
        return sum(shard.data.numel() * ELEMENT_BYTES for shard in self.shards)


def _positions(pieces: list[tuple[str, int, int]]) -> list[tuple[tuple[str, int, int], int]]:
    """Each piece with its first element in the file's data."""
    placed, position = [], 0
    for piece in pieces:
        placed.append((piece, position))
        position += piece[2] * len(TENSOR_NAMES)
    return placed
