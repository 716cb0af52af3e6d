"""Batch: what the loop takes from the data plan. Shapes: B packed sequences of a micro batch, T tokens of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORE = -100
"""Label of a position that is not trained on."""


@dataclass(frozen=True, slots=True)
class Share:
    """What of every global step is one rank's: its rows are dealt by these three numbers alone."""

    rank: int
    world_size: int
    micro_batch: int
    """Packed sequences at once."""

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and self.micro_batch > 0):
            raise ValueError(
                f"rank {self.rank} of {self.world_size} with micro batches of {self.micro_batch}: no share"
            )

    def num_micro_batches(self, num_rows: int) -> int:
        """Micro batches that every rank has, so that all ranks together have these rows."""
        return -(-num_rows // (self.world_size * self.micro_batch))

    def rows(self, micro_index: int, num_rows: int) -> range:
        """Rows of micro batch `micro_index`, of `num_rows`; the last ones may lack some or all."""
        first = (micro_index * self.world_size + self.rank) * self.micro_batch
        return range(min(first, num_rows), min(first + self.micro_batch, num_rows))


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
