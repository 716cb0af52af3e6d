"""The kernels of a GPU keep conversations apart too. Skipped where there is no CUDA device."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from trainer.model.attention import SEGMENTED, VARLEN, usable
from trainer.model.packed import PackedModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

LENGTHS = (64, 200, 7, 129)


def run(kind: str, window: int | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states of a packed row, and every parameter's gradient."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    config = LlamaConfig(**shape) if window is None else MistralConfig(**shape, sliding_window=window)
    family = LlamaForCausalLM if window is None else MistralForCausalLM
    model = family._from_config(config, attn_implementation=kind).to("cuda", torch.bfloat16).train()
    ids = torch.randint(0, 512, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1)).cuda()
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None].cuda()
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32).cuda()
    hidden = PackedModel(model, loss_chunk=128).hidden(ids, positions, bounds, max(LENGTHS))
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2)).to(hidden)
    (hidden * weight).sum().backward()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    return hidden.detach(), gradients


def kinds() -> list[str]:
    return list(usable("auto", "cuda", "bf16")) if torch.cuda.is_available() else [VARLEN]


@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("kind", kinds())
def test_every_kernel_that_can_run_agrees_with_one_conversation_at_a_time(kind, window):
    (hidden, gradients), (expected, theirs) = run(kind, window), run(SEGMENTED, window)
    assert (hidden - expected).abs().max().item() < 0.06, "bf16 rounding explains 0.03; more is a leak"
    for name, gradient in theirs.items():
        difference = (gradients[name] - gradient).norm() / gradient.norm()
        assert difference < 0.05, f"the gradient of {name}: rounding explains 0.02"


@pytest.mark.parametrize("kind", kinds())
def test_a_kernel_asked_for_one_order_of_additions_keeps_to_it(kind):
    torch.use_deterministic_algorithms(True)
    try:
        (_, first), (_, second) = run(kind, None), run(kind, None)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
