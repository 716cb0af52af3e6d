"""What a run leaves is the base plus what was trained: the same names, shapes and types, a router's bias to its last digit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_job import train, write_data, write_job, write_model

BIAS = torch.tensor([3.25, -3.0, 1.0000001, -1.0])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bf16: DeepSeek V3's experts, written one by one, its router's bias in fp32, its embeddings tied."""
    from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("export")
    base = write_model(root / "base")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_shared_experts=1, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, head_dim=8, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(base)
    stored = load_file(base / "model.safetensors")
    for name in stored:
        if name.endswith("e_score_correction_bias"):
            stored[name] = BIAS.clone()
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    write_data(root / "data.jsonl")
    return root


@pytest.mark.parametrize("zero", [1, 3])
def test_the_export_has_the_base_s_names_shapes_and_types(root: Path, zero: int) -> None:
    run = train(
        write_job(
            root, f"zero-{zero}", nproc=2,
            train={"zero": zero, "precision": "bf16", "max_steps": 3, "unfrozen": [r"layers\.1\.mlp"]},
        )
    )  # fmt: skip
    before, after = load_file(root / "base" / "model.safetensors"), load_file(run.model / "model.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in after.items()} == {
        name: (t.dtype, t.shape) for name, t in before.items()
    }
    assert any(".experts.3." in name for name in after)
    (bias,) = [name for name in after if name.endswith("e_score_correction_bias")]
    assert torch.equal(after[bias], BIAS)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".layers.1.mlp." in name for name in changed)
    assert re.search(r"loaded again, its logits differ by 0(\.0\d+)? of", run.log.read_text())
    card = (run.model / "README.md").read_text()
    assert "<|im_start|>assistant" in card
    assert "An answer ends with `<|im_end|>`" in card


def test_a_finished_run_goes_on_from_its_end_when_it_is_given_more_steps(root: Path) -> None:
    run = train(write_job(root, "longer", train={"max_steps": 3, "precision": "bf16", "unfrozen": [r"layers\.1\.mlp"]}))
    before = load_file(run.model / "model.safetensors")
    job = json.loads(run.train_json.read_text())
    job["spec"]["train"]["max_steps"] = 5
    run.train_json.write_text(json.dumps(job))
    train(run)
    assert [line["step"] for line in run.read_metrics() if "loss" in line] == [1, 2, 3, 4, 5]
    log = run.log.read_text()
    assert "resumed at step 3 of 5" in log
    assert "its schedule is drawn anew over 5 steps" in log
    after = load_file(run.model / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
