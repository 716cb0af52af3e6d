"""Families that no table knows: what transformers says of them must be what it builds, stores and trains."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.jobfile.model_checks import model_findings
from launcher.models.architecture import TrainedModel, count, find_architecture
from launcher.plan.model_rules import rules_of
from launcher.plan.throughput import step_flops
from launcher.runs.errors import BadUsage
from trainer.model.packed import Balance, PackedModel, Way
from trainer.run.spec import TrainSpec

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 1, "router_aux_loss_coef": 0.02}
DEEPSEEK = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "head_dim": 16,
}  # fmt: skip
CASES = [("mixtral", MIXTRAL), ("deepseek_v3", DEEPSEEK), ("stablelm", {}), ("granite", {"logits_scaling": 4.0})]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def base(folder: Path, family: str, more: dict[str, Any]) -> Path:
    if not (folder / family).exists():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**SMALL, **more})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / family)
    return folder / family


def spec_of(path: Path, packing: bool = True) -> TrainSpec:
    data = {"sources": [{"path": "/d.jsonl"}], "packing": packing}
    return TrainSpec.model_validate({"name": "x", "model": {"base": str(path)}, "data": data})


@pytest.mark.parametrize(("family", "more"), CASES)
def test_what_is_planned_is_what_transformers_builds_and_stores(
    family: str, more: dict[str, Any], bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(bases / "home"))
    folder = base(bases, family, more)
    lines = "\n".join(rules_of(spec_of(folder), "cpu"))
    assert f"packing: {family} checked on a small random twin" in lines
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked a second time"))
    architecture = find_architecture(str(folder), cache=bases / "home" / "cache")
    built = AutoModelForCausalLM.from_pretrained(folder)
    assert architecture.shapes == {name: tuple(value.shape) for name, value in built.named_parameters()}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert architecture.stored == {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert architecture.num_layers == 2
    assert set(architecture.layer_shapes(1)) == {name for name in architecture.shapes if ".layers.1." in name}


def test_a_lost_expert_is_found_in_the_headers(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(bases / "home"))
    folder = base(bases, "mixtral", MIXTRAL)
    spec = spec_of(folder)
    rules_of(spec, "cpu")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if ".experts.3." in name)
    try:
        save_file({name: value for name, value in weights.items() if name != lost}, folder / "model.safetensors")
        assert f"({lost})" in model_findings(spec)[0].message
        with pytest.raises(BadUsage, match="lacks 1 of"):
            rules_of(spec, "cpu")
    finally:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_family_with_a_state_is_refused_before_launch_and_planned_without_packing(
    bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(bases / "home"))
    folder = base(bases, "lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96})
    with pytest.raises(BadUsage, match=r"lfm2 does not keep packed conversations apart.*data\.packing: false"):
        rules_of(spec_of(folder), "cpu")
    assert "one conversation a row" in rules_of(spec_of(folder, packing=False), "cpu")[-1]


def test_a_token_pays_for_the_experts_that_it_meets(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(bases / "home"))
    folder = base(bases, "mixtral", MIXTRAL)
    architecture = find_architecture(str(folder), cache=bases / "home" / "cache")
    experts = sum(count(shape) for name, shape in architecture.shapes.items() if ".experts." in name)
    assert experts == 2 * 4 * 3 * 64 * 96
    assert architecture.num_active == architecture.num_parameters - experts * 3 // 4
    everything = TrainedModel.by_patterns(architecture, None)
    flops = step_flops(everything, tokens=1, labelled=1, attention_span=0, gradient_checkpointing=False)
    others = sum(
        count(shape) for name, shape in architecture.shapes.items()
        if len(shape) == 2 and ".experts." not in name and "embed" not in name
    )  # fmt: skip
    assert flops.total == 6 * (others + experts / 4)


def test_the_load_balancing_loss_is_the_familys_own(bases: Path) -> None:
    folder = base(bases, "mixtral", MIXTRAL)
    ids = torch.randint(3, 128, (1, 24))
    model: Any = AutoModelForCausalLM.from_pretrained(folder).train()
    without = model(input_ids=ids, labels=ids, use_cache=False).loss
    labelled = model(
        input_ids=ids[:, :23], output_router_logits=True, use_cache=False
    )  # a row counts up to its last label
    (without + 0.02 * labelled.aux_loss).backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    assert Balance.of(model, 0.0) is None
    model.set_attn_implementation("sdpa")
    packed = PackedModel(model, 64, way=Way("sdpa", boundaries=False)).train()
    labels = torch.cat([ids[:, 1:], torch.full((1, 1), -100)], dim=1)
    weights = (labels != -100).float()
    loss = packed(ids, labels, weights, torch.arange(24)[None], torch.tensor([0, 24], dtype=torch.int32), 24) / 23
    torch.testing.assert_close(loss, without, rtol=1e-4, atol=1e-5)
    loss.backward()
    for name, value in packed.model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name)
