"""A router in bf16 ties experts that differ by a thousandth, and a token meets another expert than the base would send it to."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING

from trainer.model import router, twin

FAMILIES = ("mixtral", "qwen3_moe")


def model_of(family: str):
    torch.manual_seed(0)
    return twin.make(CONFIG_MAPPING[family]())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_s_logits_are_those_of_fp32_and_nothing_else_changes_its_type(family: str) -> None:
    model = model_of(family).to(torch.bfloat16)
    plain = copy.deepcopy(model)
    assert router.compute_in_fp32(model) == model.config.num_hidden_layers
    exact, usual = (next(router.routers_of(one)) for one in (model, plain))
    hidden = torch.randn(2, 9, usual.weight.shape[1], dtype=torch.bfloat16).flatten(0, 1).requires_grad_()
    logits, *others = exact(hidden)
    assert torch.equal(logits, F.linear(hidden.float(), exact.weight.float()))
    assert not torch.equal(logits, usual(hidden)[0].float())
    assert [one.dtype for one in others] == [one.dtype for one in usual(hidden)[1:]]
    logits.sum().backward()
    assert exact.weight.dtype == exact.weight.grad.dtype == torch.bfloat16
    ids = torch.randint(3, 60, (1, 12))
    model.train()(input_ids=ids, use_cache=False).logits.float().sum().backward()


@pytest.mark.parametrize("family", (*FAMILIES, "jetmoe", "afmoe"))
def test_in_fp32_a_model_is_the_one_that_it_was_bit_for_bit(family: str) -> None:
    model = model_of(family)
    ids = torch.randint(3, 60, (1, 12))
    before = model(input_ids=ids, use_cache=False).logits
    router.compute_in_fp32(model)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)


@pytest.mark.parametrize(
    ("family", "count"),
    [("jetmoe", 4), ("afmoe", 1), ("granitemoe", 2), ("deepseek_v3", 1), ("inkling_text", 1), ("longcat_flash", 1)],
)
def test_a_router_is_found_where_its_family_keeps_it(family: str, count: int) -> None:
    """Inside a gating module, beside experts that are one weight, in attention, and with shared experts in its rows."""
    model = model_of(family)
    found = list(router.routers_of(model))
    assert len(found) >= count
    assert len(found) == len({id(one) for one in found})
    names = [name for name, part in model.named_modules() if any(part is one for one in found)]
    assert all("router" in name or "gate" in name for name in names), names
    router.compute_in_fp32(model.to(torch.bfloat16))
    assert model(input_ids=torch.randint(3, 60, (1, 12)), use_cache=False).logits.dtype == torch.bfloat16


def test_a_model_without_experts_has_no_router() -> None:
    assert router.compute_in_fp32(model_of("llama")) == 0
