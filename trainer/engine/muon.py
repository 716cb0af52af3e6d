"""Muon over any cut of the parameters: momentum, orthogonalised per matrix, and AdamW for what is no hidden matrix.

Owns the exchange that makes whole matrices of the ranges which ZeRO leaves on the ranks: each matrix is put together on one of
the ranks that hold it, in turn, and its update sent back. So the update does not depend on the cut. The iteration is torch's
(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon); an update has the size of AdamW's, 0.2 sqrt(larger side), so that
AdamW's learning rates hold (Liu et al. 2025, arXiv 2502.16982).
Refuses to know DeepSpeed: `attach` is told which elements of which parameter lie where.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.optim import _muon
from torch.optim.adamw import adamw

from trainer.engine.own_step import OwnStep

MOMENTUM = 0.95
NUM_STEPS = 5
"""Of the iteration."""
COEFFICIENTS = (_muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C)
BATCH_ELEMENTS = 1 << 28
"""Of matrices that are exchanged in one go: half a gigabyte over all ranks, as the iteration takes them, in bf16."""


class Range(NamedTuple):
    """Elements [start, start + numel) of a flattened parameter, from `offset` of the tensor that a rank updates."""

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A parameter and where its elements are: (rank, range), in the order of the elements."""

    shape: tuple[int, ...]
    parts: tuple[tuple[int, Range], ...]
    owner: int
    """The rank that orthogonalises it."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Muon(OwnStep):
    """A group with `is_matrix` is Muon's, the others are AdamW's. Where parameters are cut, `attach` comes before the first
    step."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "is_matrix": False})
        self._matrices: dict[int, list[_Matrix]] = {}

    def attach(self, holders: Sequence[torch.Tensor], ranges: Sequence[Sequence[Range]], is_replicated: bool) -> None:
        """All ranks. `holders` are the tensors that this optimizer updates, in the same order on every rank, with what this
        rank holds in each; `is_replicated` where every rank holds everything."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        everywhere: list[Any] = [None] * world_size
        if is_replicated:
            everywhere[rank] = ranges  # no exchange
        else:
            dist.all_gather_object(everywhere, [list(found) for found in ranges])
        for index, holder in enumerate(holders):
            found: dict[str, list[tuple[int, Range]]] = {}
            for other, theirs in enumerate(everywhere):
                for part in theirs[index] if theirs is not None else ():
                    if part[3]:
                        found.setdefault(part[0], []).append((other, Range(*part)))
            self._matrices[id(holder)] = [
                _Matrix(tuple(parts[0][1].shape), tuple(parts), parts[number % len(parts)][0])
                for number, parts in enumerate(sorted(each, key=lambda p: p[1].start) for each in found.values())
            ]

    def update(self, p: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if group["is_matrix"]:
            self._of_matrices(p, grad, state, group)
            return
        if not state:
            state.update(
                step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
            )
        adamw(
            [p], [grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]], fused=True, amsgrad=False,
            beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
            eps=group["eps"], maximize=False,
        )  # fmt: skip

    def _of_matrices(self, p: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p))
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(grad, 1 - MOMENTUM)
        ahead = grad.lerp(momentum, MOMENTUM).to(torch.bfloat16).view(-1)  # Nesterov's
        p.mul_(1 - group["lr"] * group["weight_decay"])
        rank = dist.get_rank() if dist.is_initialized() else 0
        for batch in _batches(self._matrices.get(id(p)) or [_whole(p, rank)]):
            if any(len(matrix.parts) > 1 for matrix in batch):
                _exchanged(batch, ahead)
            else:
                _alone(batch, ahead, rank)
            for matrix, part in _held(batch, rank):
                scale = 0.2 * math.sqrt(max(matrix.shape[-2:]))
                update = ahead.narrow(0, part.offset, part.numel)
                p.view(-1).narrow(0, part.offset, part.numel).add_(update, alpha=-group["lr"] * scale)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with singular values near 1, in bf16; of a stack, each of its matrices."""
    if matrix.dim() == 2:
        return _muon._zeropower_via_newtonschulz(matrix, COEFFICIENTS, NUM_STEPS, _muon.EPS)
    return torch.stack([orthogonalised(one) for one in matrix])


def _whole(p: torch.Tensor, rank: int) -> _Matrix:
    """A parameter that is not cut."""
    return _Matrix(tuple(p.shape), ((rank, Range("", tuple(p.shape), 0, p.numel(), 0)),), rank)


def _batches(matrices: Sequence[_Matrix]) -> Iterator[list[_Matrix]]:
    batch: list[_Matrix] = []
    for matrix in matrices:
        if batch and sum(each.numel for each in batch) + matrix.numel > BATCH_ELEMENTS:
            yield batch
            batch = []
        batch.append(matrix)
    if batch:
        yield batch


def _held(batch: Sequence[_Matrix], rank: int) -> Iterator[tuple[_Matrix, Range]]:
    for matrix in batch:
        for holder, part in matrix.parts:
            if holder == rank:
                yield matrix, part


def _alone(batch: Sequence[_Matrix], flat: torch.Tensor, rank: int) -> None:
    """Orthogonalise in place what this rank holds whole."""
    for matrix, part in _held(batch, rank):
        target = flat.narrow(0, part.offset, part.numel)
        target.copy_(orthogonalised(target.clone().view(matrix.shape)).reshape(-1))


def _exchanged(batch: Sequence[_Matrix], flat: torch.Tensor) -> None:
    """All ranks: orthogonalise in place, each matrix on its owner, parts sent there and back."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    to_owner = [[part for m in batch if m.owner == owner for holder, part in m.parts if holder == rank] for owner in range(world_size)]  # fmt: skip
    from_holder = [[(m, part) for m in batch if m.owner == rank for holder, part in m.parts if holder == other] for other in range(world_size)]  # fmt: skip
    sent = [sum(part.numel for part in parts) for parts in to_owner]
    received = [sum(part.numel for _, part in parts) for parts in from_holder]
    out = torch.cat([flat.narrow(0, part.offset, part.numel) for parts in to_owner for part in parts] or [flat[:0]])
    there = flat.new_empty(sum(received))
    dist.all_to_all_single(there, out, received, sent)
    wholes = {id(matrix): flat.new_empty(matrix.numel) for matrix in batch if matrix.owner == rank}
    places, position = [], 0
    for parts in from_holder:
        for matrix, part in parts:
            places.append((wholes[id(matrix)].narrow(0, part.start, part.numel), there.narrow(0, position, part.numel)))
            position += part.numel
    for whole, piece in places:
        whole.copy_(piece)
    for matrix in batch:
        if matrix.owner == rank:
            whole = wholes[id(matrix)]
            whole.copy_(orthogonalised(whole.clone().view(matrix.shape)).reshape(-1))
    for whole, piece in places:
        piece.copy_(whole)
    dist.all_to_all_single(out, there, sent, received)
    position = 0
    for back in to_owner:
        for part in back:
            flat.narrow(0, part.offset, part.numel).copy_(out.narrow(0, position, part.numel))
            position += part.numel
