"""What a job computes, in FLOPs, by the formula of the launcher's plan: the launcher counts, the trainer multiplies.

Owns the figures that `train.json` carries for it. Refuses to know models and cards.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of a run, forward and backward: linear in what a step holds."""

    token_flops: float
    """Of a token."""
    label_flops: float
    """Of a token that has a loss: logits and their gradients."""
    pair_flops: float
    """Of a token and one before it in its conversation: scores and values of attention."""
    repeated_token_flops: float
    """Of `token_flops`, those of recomputed activations."""
    repeated_pair_flops: float
    """Of `pair_flops`, the same."""
    peak_tflops: float | None
    """TFLOP/s of one card in bf16, from its data sheet; None for a CPU and for a card that is not known."""

    def done(self, tokens: float, labels: float, pairs: float) -> float:
        """FLOPs that were computed, recomputation included."""
        return self.token_flops * tokens + self.label_flops * labels + self.pair_flops * pairs

    def needed(self, tokens: float, labels: float, pairs: float) -> float:
        """FLOPs that the model needs: what utilisation (MFU; Chowdhery 2022, appendix B) counts."""
        repeated = self.repeated_token_flops * tokens + self.repeated_pair_flops * pairs
        return self.done(tokens, labels, pairs) - repeated
