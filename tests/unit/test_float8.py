"""fp8 changes how the decoder's matrices multiply and nothing else, and a card without it is refused in words that help."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from launcher.backends.base import Offer
from launcher.jobfile.spec import JobSpec
from launcher.plan.of_job import plan_of
from launcher.runs.errors import BadUsage
from trainer.model import float8
from trainer.model.packed import PackedModel
from trainer.run.contradictions import problems
from trainer.run.exits import BadInput
from trainer.run.spec import TrainSpec


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str, installed: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)

    def version(package: str) -> str:
        if not installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return "0.18.0"

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_cards_without_fp8_are_refused_and_told_what_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="fp8 needs a GPU"):
        float8.require("cpu", 1)
    card(monkeypatch, (8, 0), "NVIDIA A100-SXM4-80GB")
    with pytest.raises(
        BadInput, match=r"A100-SXM4-80GB has no fp8 arithmetic \(compute capability 8\.0; .* write bf16"
    ):
        float8.require("cuda", 1)
    card(monkeypatch, (9, 0), "NVIDIA H100", installed=False)
    with pytest.raises(BadInput, match="pip install torchao"):
        float8.require("cuda", 1)
    with pytest.raises(BadInput, match="has not been tried under ZeRO-3"):
        float8.require("cuda", 3)
    for capability in ((8, 9), (9, 0), (10, 0)):
        card(monkeypatch, capability, "a newer card")
        float8.require("cuda", 1)


def test_routers_and_odd_shapes_stay_as_they_are() -> None:
    assert float8.takes_part(nn.Linear(64, 32), "layers.0.mlp.gate_proj")
    assert not float8.takes_part(nn.Linear(64, 32), "layers.0.mlp.gate")
    assert not float8.takes_part(nn.Linear(64, 40), "layers.0.mlp.up_proj")
    assert not float8.takes_part(nn.Embedding(64, 32), "embed_tokens")


def spec(**train: Any) -> TrainSpec:
    return TrainSpec.model_validate(
        {"name": "t", "model": {"base": "/m"}, "data": {"sources": [{"path": "/d"}]}, "train": train}
    )


def test_fp8_is_stored_as_bf16_and_contradicts_zero_3() -> None:
    assert [spec(precision=p).train.stored_precision for p in ("fp8", "bf16", "fp32")] == ["bf16", "bf16", "fp32"]
    (found,) = problems(spec(precision="fp8", zero=3))
    assert found.where == ("train", "precision")
    assert problems(spec(precision="fp8", zero=2)) == []


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_a_model_in_fp8_computes_nearly_the_same_with_the_same_parameters() -> None:
    """Emulated, on a CPU: three bits of mantissa."""
    found = []
    for in_fp8 in (False, True):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        )  # fmt: skip
        model = LlamaForCausalLM._from_config(config, attn_implementation="dolphin_segments", dtype=torch.bfloat16)
        parameters = dict(model.named_parameters())
        if in_fp8:
            assert float8.apply(model, emulated=True) == 14
        assert [(n, id(p)) for n, p in model.named_parameters()] == [(n, id(p)) for n, p in parameters.items()]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layers.0.self_attn" not in name)
        packed = PackedModel(model, loss_chunk=16).train()
        ids = torch.arange(32)[None]
        loss = packed(
            ids, ids.roll(-1, 1), torch.ones(1, 32), ids % 20, torch.tensor([0, 20, 32], dtype=torch.int32), 20
        )
        loss.backward()
        gradients = [p.grad.float().flatten() for p in packed.parameters() if p.grad is not None]
        found.append((loss.item(), torch.cat(gradients)))
    (plain, plain_gradient), (ours, our_gradient) = found
    assert plain != ours, "nothing was converted"
    assert abs(plain - ours) / plain < 0.01
    assert nn.functional.cosine_similarity(plain_gradient, our_gradient, dim=0) > 0.98


@pytest.mark.parametrize(("accelerators", "is_refused"), [("A100-80GB:8", True), ("T4:8", True), ("L40S:8", False)])
def test_a_plan_for_a_card_without_fp8_ends_before_anything_is_paid(accelerators: str, is_refused: bool) -> None:
    job = JobSpec.model_validate(
        {
            "name": "t", "model": {"base": "meta-llama/Meta-Llama-3.1-8B"}, "data": {"sources": [{"path": "/d"}]},
            "train": {"precision": "fp8", "global_batch": 8}, "resources": {"accelerators": accelerators},
        }
    )  # fmt: skip
    offer = Offer(
        backend="sky", infra="here", accelerator=accelerators.split(":")[0], count=8, price_usd_per_hour=1.0, spot=False
    )
    if is_refused:
        with pytest.raises(BadUsage, match="has no fp8 arithmetic"):
            plan_of(job, [offer], sequences=100)
    else:
        plan = plan_of(job, [offer], sequences=100)
        assert any("hours are counted as for bf16" in note for note in plan.notes)
