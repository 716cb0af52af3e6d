"""Snapshot: this rank's state in host memory, all that a save needs from the training.

Owns the buffers of the copy, which are taken once and used by every save: page-locked where there is a GPU, so that the
copy runs at the bus's speed. Masters and moments change in the optimizer's update alone, so the copy runs beside the
forward and backward passes of the next step; only that step's update waits for it. State that an offloaded optimizer keeps
in host memory is not copied but lent: the update waits until it is in a file. Refuses to know files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.checkpoint import random_state
from trainer.checkpoint.shards import plan_files
from trainer.engine import zero_state
from trainer.run.optimizer_state import SAVED_BYTES, SAVED_DTYPE, OptimizerState


@dataclass(slots=True)
class ShardSnapshot:
    """Content of one shard file."""

    pieces: list[tuple[str, int, int]]
    """(name, start, numel)."""
    tensors: list[torch.Tensor]
    """fp32 and flat, together the tensors of the state of each piece, one after the other: one copy of it all, or what the
    optimizer holds."""
    state: OptimizerState

    def parts(self) -> Iterator[memoryview]:
        """The content in order."""
        for tensor in self.tensors:
            yield memoryview(tensor.numpy()).cast("B")

    @property
    def num_bytes(self) -> int:
        return sum(numel for _, _, numel in self.pieces) * self.state.saved_bytes


@dataclass(slots=True)
class Snapshot:
    """Host memory with one rank's state; `begin` and `copy` fill it again and again."""

    state: OptimizerState
    """Of the optimizer that trains."""
    shards: list[ShardSnapshot] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    random: bytes = b""
    optimizer_step: int = 0
    is_lent: bool = False
    """The tensors are the optimizer's own: no update until they are written."""
    _pending: list[tuple[torch.Tensor, zero_state.Live]] = field(default_factory=list)
    """(target, source) still to be copied."""
    _device: torch.device | None = None
    """The GPU that the state is on."""
    _ready: Any = None
    """CUDA event: the state is complete on the stream that trains."""
    _stream: Any = None
    """CUDA stream of the copies."""

    def reserve(self, engine: Any) -> None:
        """Take the memory for `engine`'s state, before the first step rather than within the first save."""
        if self.shards or self.is_lent:
            return
        self.is_lent = zero_state.is_offloaded(engine)
        self.shapes = zero_state.trainable_shapes(engine)
        pieces = [(shard.name, shard.start, shard.numel) for shard in zero_state.iterate_shards(engine, self.state)]
        on_gpu = _is_cuda(engine)
        for file in plan_files(pieces, self.state):
            shard = ShardSnapshot(file, [], self.state)
            if not self.is_lent:
                num_elements = shard.num_bytes // SAVED_BYTES
                shard.tensors.append(torch.zeros(num_elements, dtype=getattr(torch, SAVED_DTYPE), pin_memory=on_gpu))
            self.shards.append(shard)

    def begin(self, engine: Any) -> None:
        """Note what is to be copied, or lent. From now until `copy` has returned, or what is lent is written, the optimizer
        must not update anything.

        Called by the training thread between two steps. What the next forward pass changes is captured here.
        """
        self.reserve(engine)
        self._pending = []
        places = ((piece, shard, position) for shard in self.shards for piece, position in _positions(shard))
        if self.is_lent:
            for shard in self.shards:
                shard.tensors.clear()
        for live, (piece, shard, position) in zip(zero_state.iterate_shards(engine, self.state), places, strict=True):
            if piece != (live.name, live.start, live.numel):
                raise RuntimeError(f"the engine's state has changed its layout: {piece[0]} where {live.name} is")
            for index, tensor in enumerate(live.tensors):
                if self.is_lent:
                    if not isinstance(tensor, torch.Tensor):
                        raise RuntimeError(f"{live.name} is held in no form that a file can have")
                    shard.tensors.append(tensor)
                else:
                    target = shard.tensors[0].narrow(0, position + index * live.numel, live.numel)
                    self._pending.append((target, tensor))
        self._device = engine.device if _is_cuda(engine) else None
        if self._device is not None:
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(self._device))
        self.random = random_state.capture(engine.device)
        self.optimizer_step = zero_state.optimizer_step(engine)

    def copy(self) -> None:
        """Copy what `begin` noted; returns when the copy is complete. Any thread: a GPU copies on a stream of its own."""
        if self._device is None or not self._pending:
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
            target.copy_(source if isinstance(source, torch.Tensor) else source(), non_blocking=True)
        self._pending = []

    @property
    def size_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


def _is_cuda(engine: Any) -> bool:
    return bool(engine.device.type == "cuda")


def _positions(shard: ShardSnapshot) -> list[tuple[tuple[str, int, int], int]]:
    """Each piece with its first element in the file's data."""
    placed, position = [], 0
    for piece in shard.pieces:
        placed.append((piece, position))
        position += piece[2] * len(shard.state.tensors)
    return placed
