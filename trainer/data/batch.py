"""Batch: what the loop takes from the data plan. Shapes: B packed sequences of a micro batch, T tokens of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORE = -100
"""Label of a position that is not trained on."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro batch of packed sequences on one rank.

    Targets are shifted already: `labels_BT[b, t]` is the token that position t must predict, IGNORE where its weight is
    0 and at the last token of every conversation. A position's loss counts `weights_BT` times.
    """

    ids_BT: torch.Tensor
    """int64; padding at the end of a row."""
    labels_BT: torch.Tensor
    """int64, already shifted."""
    weights_BT: torch.Tensor
    """float32, 0 where the label is IGNORE."""
    positions_BT: torch.Tensor
    """int64; restarts at 0 with every conversation, and with the padding."""
    cu_seqlens: torch.Tensor
    """int32; offsets of the conversations (and padding runs) in the flattened B*T tokens, from 0 to B*T inclusive."""
    max_seqlen: int
    """Longest run between two offsets."""

    def to(self, device: torch.device | str) -> Batch:
        move = {"device": device, "non_blocking": True}
        return Batch(
            self.ids_BT.to(**move), self.labels_BT.to(**move), self.weights_BT.to(**move),
            self.positions_BT.to(**move), self.cu_seqlens.to(**move), self.max_seqlen,
        )  # fmt: skip
