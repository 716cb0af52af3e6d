"""Fused kernels on a CUDA device: what Triton's compiler makes of them, in the precision that trains."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.model import kernels
from trainer.model.packed import PackedModel

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed"),
]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "granite")


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_layers_give_the_values_and_gradients_of_plain_ones(family: str) -> None:
    difference = kernels.compare(AutoConfig.for_model(family), torch.device("cuda"))
    assert difference is not None
    assert difference < kernels.TOLERANCE


def run(fused: bool) -> tuple[float, torch.Tensor]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="dolphin_varlen")
    if fused:
        kernels.apply(model, "cuda")
    packed = PackedModel(model, loss_chunk=64).to("cuda").train()
    ids = torch.randint(0, 512, (1, 512), device="cuda")
    positions = torch.cat([torch.arange(300), torch.arange(212)])[None].to("cuda")
    bounds = torch.tensor([0, 300, 512], dtype=torch.int32, device="cuda")
    loss = packed(ids, ids.roll(-1, 1), torch.ones(1, 512, device="cuda"), positions, bounds, 300)
    loss.backward()
    return loss.item(), torch.cat([p.grad.float().flatten() for p in packed.parameters() if p.grad is not None])


def test_a_packed_batch_in_bf16_differs_by_rounding_alone() -> None:
    (plain, plain_gradient), (fused, fused_gradient) = run(False), run(True)
    assert abs(plain - fused) / plain < 2e-3
    assert torch.nn.functional.cosine_similarity(plain_gradient, fused_gradient, dim=0) > 0.999
