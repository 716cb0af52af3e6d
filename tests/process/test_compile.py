"""Compiled layers compute what plain ones do, under the same names; tests/nightly has a whole run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.model import compiled
from trainer.model.packed import PackedModel


def run(is_compiled: bool) -> dict[str, torch.Tensor]:
    """Two packed batches, the lower layer frozen, activations recomputed."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="dolphin_segments")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0." not in name)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if is_compiled:
        assert compiled.apply(model) == 2
    packed, found = PackedModel(model, loss_chunk=8).train(), {}
    for cut in (12, 5):
        ids, positions = torch.randint(0, 64, (1, 20)), torch.cat([torch.arange(cut), torch.arange(20 - cut)])[None]
        bounds = torch.tensor([0, cut, 20], dtype=torch.int32)
        loss = packed(ids, ids.roll(-1, 1), torch.ones(1, 20), positions, bounds, max(cut, 20 - cut))
        loss.backward()
        found[f"loss {cut}"] = loss.detach()
    return found | {name: p.grad for name, p in packed.named_parameters() if p.grad is not None}


def test_compiled_layers_give_the_same_losses_and_gradients_under_the_same_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, real, graphs = run(False), torch.compile, []

    def eager(method: Any) -> Any:
        def keep(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        return real(method, backend=keep)

    monkeypatch.setattr(torch, "compile", eager)
    torch._dynamo.reset()
    ours = run(True)
    assert graphs, "nothing was compiled"
    assert list(ours) == list(plain)
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-5, atol=1e-6)
