"""A model that only the newest library reads is lost to whoever serves it with an older one, or worse: it is read in
silence with another rotary base or another tokenizer. The real transformers 4.57 reads what is exported here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import older_transformers
from tests.support.tiny_job import train, write_data, write_job, write_model
from trainer.export import older_tools
from trainer.run.settings.model import ModelSpec

IDS = list(range(5, 205))
TEXT = "Hello  world,\n\n\tdon't 1234 naïve <|tool|>🐬"
MESSAGES = [{"role": "user", "content": "the sea"}]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 54321.0}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3},
    "qwen3": {"rope_parameters": PLAIN | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "phi3": {
        "rope_parameters": PLAIN | {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        "original_max_position_embeddings": 64,
    },
    "gpt_neox": {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}},
    "glm4": {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}},
    "gemma3_text": WINDOWED | {
        "rope_parameters": {
            "full_attention": PLAIN | {"rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1234.0},
        },
    },
    "mixtral": {"rope_parameters": PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": EXPERTS | {"rope_parameters": PLAIN, "num_experts": 4},
    "deepseek_v3": EXPERTS | {
        "rope_parameters": PLAIN, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 8,
    },
}  # fmt: skip

READ = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4.57"), transformers.__version__
ids, text, messages = json.loads(sys.argv[1])
read = {}
for folder in sys.argv[2:]:
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    broken = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in found[kind]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    read[folder] = {
        "broken": broken,
        "logits": model.eval()(torch.tensor([ids])).logits[0, ::13].tolist(),
        "ids": tokenizer(text).input_ids,
        "chat": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        "end": model.generation_config.eos_token_id,
    }
print(json.dumps(read))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run whose base has Llama 3.1's rotary settings and its own tokens."""
    older_transformers.folder()  # skips before anything is trained
    root = tmp_path_factory.mktemp("older")
    base = write_model(root / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rope_parameters": LLAMA3}))
    write_data(root / "data.jsonl")
    job = write_job(root, "run", model={"added_tokens": ["<|tool|>"]}, train={"max_steps": 2, "precision": "bf16"})
    return train(job).model


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Path:
    """A folder for each family, written as an export is: weights, configuration and tokenizer."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("families")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(exported)
    for family, settings in FAMILIES.items():
        torch.manual_seed(0)
        config = CONFIG_MAPPING[family](
            **{
                "vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "intermediate_size": 128, "head_dim": 16, "max_position_embeddings": 256,
                "tie_word_embeddings": False, "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            } | json.loads(json.dumps(settings))
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(root / family)
        spec = ModelSpec(base=str(root / "none"))
        older_tools.write_config(model.config, root / family, spec)
        older_tools.write_tokenizer(tokenizer, root / family, spec)
    return root


@pytest.fixture(scope="module")
def read_by_older(exported: Path, families: Path) -> dict[str, dict[str, Any]]:
    folders = [str(exported), *(str(families / family) for family in FAMILIES)]
    return json.loads(older_transformers.run(READ, json.dumps([IDS, TEXT, MESSAGES]), *folders))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same_under_older_transformers(
    family: str, families: Path, read_by_older: dict[str, dict[str, Any]]
) -> None:
    from transformers import AutoModelForCausalLM

    found = read_by_older[str(families / family)]
    assert found["broken"] == []
    model = AutoModelForCausalLM.from_pretrained(families / family, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0, ::13]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-5, rtol=1e-5)


def test_a_finished_run_reads_the_same_under_older_transformers(
    exported: Path, read_by_older: dict[str, dict[str, Any]]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = read_by_older[str(exported)]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0, ::13]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-5, rtol=1e-5)
    assert found["broken"] == []
    assert found["ids"] == tokenizer(TEXT).input_ids
    assert found["chat"] == tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert found["end"] == model.generation_config.eos_token_id


def test_the_files_say_nothing_of_how_the_newer_library_works(exported: Path) -> None:
    tokenizer = json.loads((exported / "tokenizer_config.json").read_text())
    config = json.loads((exported / "config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "backend", "local_files_only"} & set(tokenizer)
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"]["factor"] == 8.0
    assert config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
