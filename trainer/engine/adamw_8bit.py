"""AdamW with moments of 8 bits: bitsandbytes' update, and its state in and out as fp32.

Owns the table of the 256 values and the rounding into it. Blocks of 256 elements share a scale, the largest absolute value
in it (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861). The table of signed values is
symmetric here, so that a block's largest element is exactly the scale or its negative: what is read as fp32 is rounded back
to the same codes and scales, and a run that is cut at the same places goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainer.engine.own_step import OwnStep
from trainer.model import quiet
from trainer.run.optimizer_state import OPTIMIZER_STATES, StateTensor

MOMENTS = OPTIMIZER_STATES["adamw_8bit"].moments
BLOCK = MOMENTS[0].block
"""bitsandbytes has kernels for this size alone."""


class AdamW8bit(OwnStep):
    """Over flat or whole parameters of any shape. Needs the package bitsandbytes; raises ImportError."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        quiet.bitsandbytes()
        from bitsandbytes import functional

        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._update: Callable[..., None] = functional.optimizer_update_8bit_blockwise
        table: Callable[..., torch.Tensor] = functional.create_dynamic_map
        self._tables = (table(signed=True), table(signed=False))
        self._tables[0][0] = -self._tables[0][-1]

    def update(self, p: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(_empty(p))
        state["step"] += 1
        first, second = (state[moment.name] for moment in MOMENTS)
        self._update(
            "adam", grad.contiguous(), p, first, second, *group["betas"], 0.0, 0.0, group["eps"], state["step"],
            group["lr"], *self._tables_on(p.device), *(state[_scales(moment)] for moment in MOMENTS),
            group["weight_decay"],
        )  # fmt: skip

    def moment(self, p: torch.Tensor, moment: StateTensor, offset: int, numel: int) -> torch.Tensor:
        """Elements [offset, offset + numel) of a moment, in fp32."""
        state = self.state[p]
        table = self._tables_on(p.device)[MOMENTS.index(moment)]
        first, last = offset // BLOCK, -(-(offset + numel) // BLOCK)
        scales = state[_scales(moment)][first:last].repeat_interleave(BLOCK).narrow(0, offset - first * BLOCK, numel)
        return scales.mul_(table[state[moment.name].view(-1).narrow(0, offset, numel).int()])

    @torch.no_grad()
    def set_moments(self, p: torch.Tensor, step: int, values: Mapping[str, torch.Tensor]) -> None:
        """Replace the state of `p` by moments in fp32, a vector of all its elements each, by name."""
        state = self.state[p] = {**_empty(p), "step": step}
        for moment, table in zip(MOMENTS, self._tables_on(p.device), strict=True):
            codes, scales = rounded(values[moment.name], table)
            state[moment.name].view(-1).copy_(codes)
            state[_scales(moment)].copy_(scales)

    def _tables_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tables[0].device != device:
            self._tables = self._tables[0].to(device), self._tables[1].to(device)
        return self._tables


def rounded(values: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes in uint8, scale of each block) of a vector in fp32, with the nearest values of an ascending table."""
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], middles)
    return codes.view(-1)[: len(values)].to(torch.uint8), scales


def _empty(p: torch.Tensor) -> dict[str, Any]:
    empty: dict[str, Any] = {"step": 0}
    for moment in MOMENTS:
        empty[moment.name] = torch.zeros_like(p, dtype=torch.uint8)
        empty[_scales(moment)] = torch.zeros(-(-p.numel() // BLOCK), device=p.device)
    return empty


def _scales(moment: StateTensor) -> str:
    return f"{moment.name}_scales"
