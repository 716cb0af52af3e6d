"""To recompute other layers than the plan counts is a run out of memory; to compute other gradients is another model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.model import build
from trainer.run.exits import BadInput
from trainer.run.recomputation import is_recomputed

NUM_LAYERS = 5


def gradients(every: int) -> tuple[list[torch.Tensor], list[int]]:
    """(of every parameter, how often each layer was run)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=NUM_LAYERS, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).train()
    build.recompute(model, every)
    runs = [0] * NUM_LAYERS
    for number, layer in enumerate(model.model.layers):

        def count(*_: object, number: int = number) -> None:
            runs[number] += 1

        layer.mlp.register_forward_pre_hook(count)
    ids = torch.arange(8)[None]
    model(input_ids=ids, use_cache=False).logits.square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None], runs


@pytest.mark.parametrize("every", [0, 1, 2, 3])
def test_one_layer_in_so_many_is_run_again_and_the_gradients_are_the_same(every: int) -> None:
    plain, _ = gradients(0)
    found, runs = gradients(every)
    assert runs == [2 if is_recomputed(layer, every) else 1 for layer in range(NUM_LAYERS)]
    assert sum(runs) == NUM_LAYERS + (-(-NUM_LAYERS // every) if every else 0)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_a_family_that_recomputes_all_or_nothing_says_so() -> None:
    class Alone(nn.Module):
        def gradient_checkpointing_enable(self, **_: object) -> None: ...

    build.recompute(Alone(), 1)
    with pytest.raises(BadInput, match="a Alone recomputes all of its layers or none"):
        build.recompute(Alone(), 2)
