"""Which kernel of attention a job will run with, as far as that can be told before there is a node. Knows no torch; what runs is
chosen by `trainer.model.attention`, which looks at what the node has."""

from __future__ import annotations

from trainer.run.settings.model import ModelSpec

HOPPER = ("H100", "H200", "H800", "H20", "GH200")


def expected(model: ModelSpec, device: str, precision: str, gpu: str | None) -> str:
    """A line for a person. `gpu` is the card's name, where one is asked for."""
    if model.attention != "auto":
        return f"attention kernel: {model.attention}, as asked"
    if device != "cuda" or precision != "bf16":
        return "attention kernel: SDPA, one conversation at a time (flash attention needs a GPU and bf16)"
    better = "flash-attn"
    if gpu is not None and gpu.upper().split("-")[0] in HOPPER:
        better = "FlashAttention 3 or flash-attn"
    return f"attention kernel: torch's varlen flash attention, or {better} where the node has it; the run's log says which, and why"
