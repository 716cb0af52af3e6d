"""A pattern that hits nothing trains another model than the one that was paid for: it must be an error."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.model import freeze
from trainer.run.exits import BadInput
from trainer.run.patterns import match


@pytest.fixture
def model() -> nn.Module:
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=12, **shape))


def test_only_what_a_pattern_hits_is_trained(model):
    report = freeze.apply(model, ["input_layernorm", r"^lm_head.weight$"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"model.layers.{i}.input_layernorm.weight" for i in range(12)} | {"lm_head.weight"}
    assert set(report.trainable) == trained
    assert report.num_trainable == 12 * 8 + 16 * 8
    assert report.num_parameters == sum(p.numel() for p in model.parameters())
    assert str(report).startswith("training 224 of ")


def test_layer_1_is_not_layer_11(model):
    freeze.apply(model, ["model.layers.1.mlp.down_proj"])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["model.layers.1.mlp.down_proj.weight"]


def test_a_pattern_without_a_hit_names_itself_and_the_nearest_parameter(model):
    with pytest.raises(
        BadInput, match=r"'model.layers.80.mlp.up_proj' matches no parameter; the nearest .*layers.\d+.mlp.up_proj"
    ):
        freeze.apply(model, ["norm", "model.layers.80.mlp.up_proj"])


def test_rotary_embeddings_have_no_parameters_and_naming_them_is_no_mistake(model):
    freeze.apply(model, ["self_attn.rotary_emb", "norm"])
    assert match(["self_attn.rotary_emb"], ["a"]).idle == ("self_attn.rotary_emb",)


def test_a_broken_expression_is_bad_input(model):
    with pytest.raises(BadInput, match="not a regular expression"):
        freeze.apply(model, ["layers.(1"])


def test_a_tied_embedding_is_trained_when_either_name_is_hit():
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    tied = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=1, tie_word_embeddings=True, **shape))
    freeze.apply(tied, [r"^lm_head"])
    assert tied.model.embed_tokens.weight.requires_grad


def test_no_pattern_trains_everything(model):
    report = freeze.apply(model, None)
    assert report.num_trainable == report.num_parameters
    assert torch.is_grad_enabled()
