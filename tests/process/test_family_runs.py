"""Families that are called in another way must train alike however many ranks share them, under ZeRO-3 too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support.tiny_job import losses, train, write_data, write_job, write_model
from trainer.data.plan import DataPlan
from trainer.model import twin
from trainer.run.spec import NodeJob

FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "router_aux_loss_coef": 0.05},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "gemma2": {"final_logit_softcapping": 5.0, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96},
}  # fmt: skip


def base(root: Path, family: str) -> Path:
    """A folder with a small random model of the family and the tests' tokenizer, and its data."""
    root.mkdir()
    write_model(root / "base")
    write_data(root / "data.jsonl", num_conversations=60)
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    (root / "base" / "model.safetensors").unlink()
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **FAMILIES[family],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    twin.strengthen(model)
    model.save_pretrained(root / "base")
    return root / "base"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_one_rank_and_two_of_zero_3_train_the_loss_of_each_conversation_alone(family: str, tmp_path: Path) -> None:
    folder = base(tmp_path / family, family)
    settings: dict[str, Any] = {"max_steps": 4, "unfrozen": None, "learning_rate": 1e-3, "warmup_steps": 0}
    data = {"packing": family != "lfm2", "train_on_inputs": True}
    one = write_job(tmp_path / family, "one", data=data, train=settings | {"micro_batch": 1})
    two = write_job(tmp_path / family, "two", nproc=2, data=data, train=settings | {"micro_batch": 2, "zero": 3})
    for run in (one, two):
        train(run)
    assert losses(one)[-1] < losses(one)[0]
    assert max(abs(a - b) for a, b in zip(losses(one), losses(two), strict=True)) < 2e-4
    assert math.isclose(losses(one)[0], loss_alone(folder, NodeJob.read(one.train_json)), rel_tol=1e-4)
    assert json.loads(one.outcome.read_text())["state"] == "done"


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_router_stays_in_fp32_under_zero_3_in_bf16(family: str, tmp_path: Path) -> None:
    base(tmp_path / family, family)
    settings = {"max_steps": 2, "unfrozen": None, "micro_batch": 2, "zero": 3, "precision": "bf16", "warmup_steps": 0}
    run = write_job(tmp_path / family, "run", nproc=2, train=settings | {"gradient_checkpointing": True})
    train(run)
    assert "experts: the routers of 2 layers are computed in fp32" in run.log.read_text()
    assert all(math.isfinite(loss) for loss in losses(run))


def loss_alone(folder: Path, job: NodeJob) -> float:
    """Mean loss of the first step's conversations, one by one, by the model's own forward."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    plan = DataPlan.open(job)
    total = count = 0.0
    for sequence in plan._step_sequences(0):
        ids = torch.from_numpy(plan.data.token_ids(int(sequence)).astype("int64"))[None]
        weights = torch.from_numpy(plan.data.token_weights(int(sequence)).astype("float32"))[1:]
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0].float()
        total += (F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none") * weights).sum().item()
        count += weights.sum().item()
    return total / count
