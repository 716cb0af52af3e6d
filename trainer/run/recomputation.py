"""Which layers are recomputed in the backward pass: the plan counts by it, and the trainer does it."""

from __future__ import annotations


def is_recomputed(layer: int, every: int) -> bool:
    """Of layer `layer`, counted from 0, where one in `every` is recomputed; 0 recomputes none."""
    return every > 0 and layer % every == 0
