"""A floor that counts products which no step computes would be above what is held against it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.training_beside import products_of
from trainer.model import adapter
from trainer.run.settings.adapter import AdapterSpec

LINEAR_OF_A_LAYER = 7


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))


def test_the_floor_of_a_whole_model_is_three_products_a_layer(model: LlamaForCausalLM) -> None:
    products = products_of(model)
    assert len(products) == 2 * LINEAR_OF_A_LAYER + 1
    assert all(product.is_trained and product.is_input_trained for product in products)
    assert [product.shape for product in products if product.is_head] == [(64, 32)]


def test_the_floor_of_an_adapter_leaves_out_what_is_frozen(model: LlamaForCausalLM) -> None:
    adapter.inject(model, AdapterSpec(type="lora", rank=4), (), seed=0)
    products = products_of(model)
    assert len(products) == 3 * 2 * LINEAR_OF_A_LAYER + 1
    assert all(product.is_trained == (4 in product.shape) for product in products)
    # q, k and v of the first layer and their first matrices stand on frozen embeddings
    assert [product.is_input_trained for product in products].count(False) == 6
