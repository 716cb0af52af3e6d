"""Tally: what the loss counts besides, while it has the logits at hand. Refuses to know ranks and what becomes of the counts."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Counts(NamedTuple):
    """Of this rank."""

    labels: int
    """Tokens with a label."""
    correct: torch.Tensor | int
    """Of them those that are the likeliest."""
    entropy: torch.Tensor | int
    """Sum over them of the prediction's entropy in nats; counted where no gradient is wanted."""


class Tally:
    """Adds up on the device, which is not waited for."""

    def __init__(self) -> None:
        self._counts = Counts(0, 0, 0)

    def take(self) -> Counts:
        """Counts since the last call."""
        counts, self._counts = self._counts, Counts(0, 0, 0)
        return counts

    def add(self, log_shares_NV: torch.Tensor, of_targets_N: torch.Tensor, *, with_entropy: bool) -> None:
        """`log_shares_NV` are logarithms of the predicted probabilities, `of_targets_N` the labels' own. A label that shares the
        first place counts as the likeliest. The entropy takes one more buffer of their size, the likeliest none."""
        labels, correct, entropy = self._counts
        correct = correct + (of_targets_N >= log_shares_NV.amax(-1)).sum()
        if with_entropy:  # 0 x log 0 is 0
            terms = log_shares_NV.exp().mul_(log_shares_NV)
            entropy = entropy - torch.nan_to_num_(terms, nan=0.0).sum(dtype=torch.float64)
        self._counts = Counts(labels + len(of_targets_N), correct, entropy)
