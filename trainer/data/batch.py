"""Batch: what the loop takes from the data plan. Shapes: B packed sequences of a micro batch, T tokens of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

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
    labelled_N: torch.Tensor
    """int64; where labels are in the flattened B*T tokens, in order. Found here, on the CPU: a GPU that is asked for them is
    waited for in every micro batch."""
    row_ends: tuple[int, ...]
    """Of each row, the tokens up to its last label, that included; 0 where it has none."""

    @classmethod
    def of(
        cls,
        ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        weights_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        cu_seqlens: torch.Tensor,
    ) -> Batch:
        """With what follows from these, which are on the CPU."""
        has_label = labels_BT != IGNORE
        return cls(
            ids_BT, labels_BT, weights_BT, positions_BT, cu_seqlens, int(cu_seqlens.diff().max()),
            has_label.reshape(-1).nonzero().squeeze(1),
            tuple(int(row.nonzero()[-1]) + 1 if row.any() else 0 for row in has_label),
        )  # fmt: skip

    def to(self, device: torch.device | str) -> Batch:
        """On another device; from page-locked memory without waiting for the copies."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """In page-locked memory, from which a GPU copies while it computes."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values = [getattr(self, field.name) for field in fields(self)]
        return Batch(*(change(value) if isinstance(value, torch.Tensor) else value for value in values))
