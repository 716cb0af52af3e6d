"""Snapshot: a copy of this rank's state in host memory, all that a save needs from the training.

Owns the buffers, which are taken once and used by every save: page-locked where there is a GPU, so that the copy runs
at the bus's speed. Masters and moments change in the optimizer's update alone, so the copy runs beside the forward and
backward passes of the next step; only that step's update waits for it. Refuses to know files.
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
    """Host memory for one rank's state; `begin` and `copy` fill it again and again."""

    shards: list[ShardSnapshot] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    random: bytes = b""
    optimizer_step: int = 0
    _pending: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """(target, source) still to be copied."""
    _device: torch.device | None = None
    """The GPU that the state is on."""
    _ready: Any = None
    """CUDA event: the state is complete on the stream that trains."""
    _stream: Any = None
    """CUDA stream of the copies."""

    def reserve(self, engine: Any) -> None:
        """Take the memory for `engine`'s state, before the first step rather than within the first save."""
        if self.shards:
            return
        self.shapes = zero_state.trainable_shapes(engine)
        pieces = [(shard.name, shard.start, shard.numel) for shard in zero_state.iterate_shards(engine)]
        on_gpu = _is_cuda(engine)
        for file in plan_files(pieces):
            num_elements = sum(numel for _, _, numel in file) * len(TENSOR_NAMES)
            data = torch.zeros(num_elements, dtype=torch.float32, pin_memory=on_gpu)
            self.shards.append(ShardSnapshot(file, data))

    def begin(self, engine: Any) -> None:
        """Note what is to be copied. From now until `copy` has returned the optimizer must not update anything.

        Called by the training thread between two steps. What the next forward pass changes is captured here.
        """
        self.reserve(engine)
        self._pending = []
        targets = (
            (piece, shard.data, position) for shard in self.shards for piece, position in _positions(shard.pieces)
        )
        for live, (piece, data, position) in zip(zero_state.iterate_shards(engine), targets, strict=True):
            if piece != (live.name, live.start, live.numel):
                raise RuntimeError(f"the engine's state has changed its layout: {piece[0]} where {live.name} is")
            for index, tensor in enumerate((live.master, live.exp_avg, live.exp_avg_sq)):
                self._pending.append((data.narrow(0, position + index * live.numel, live.numel), tensor))
        self._device = engine.device if _is_cuda(engine) else None
        if self._device is not None:
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(self._device))
        self.random = random_state.capture()
        self.optimizer_step = zero_state.optimizer_step(engine)

    def copy(self) -> None:
        """Copy what `begin` noted; returns when the copy is complete. Any thread: a GPU copies on a stream of its own."""
        if self._device is None:
            self._copy_all()
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._ready)
            self._copy_all()
        self._stream.synchronize()

    def _copy_all(self) -> None:
        for target, source in self._pending:
            target.copy_(source, non_blocking=True)
        self._pending = []

    @property
    def size_bytes(self) -> int:
        return sum(shard.data.numel() * ELEMENT_BYTES for shard in self.shards)


def _is_cuda(engine: Any) -> bool:
    return bool(torch.cuda.is_available() and engine.device.type == "cuda")


def _positions(pieces: list[tuple[str, int, int]]) -> list[tuple[tuple[str, int, int], int]]:
    """Each piece with its first element in the file's data."""
    placed, position = [], 0
    for piece in pieces:
        placed.append((piece, position))
        position += piece[2] * len(TENSOR_NAMES)
    return placed
