"""A training job small enough for a test: a tokenizer, a Llama of 50 thousand weights, conversations, a train.json.

Everything is made here from a seed, so that every test run trains the same model on the same data.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob

WORDS = [
    "the",
    "sea",
    "is",
    "blue",
    "and",
    "deep",
    "so",
    "a",
    "dolphin",
    "swims",
    "far",
    "from",
    "land",
    "to",
    "find",
    "its",
    "kin",
    "under",
    "warm",
    "light",
]
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|im_end|>", "<|finetune_right_pad_id|>", "<|im_start|>"]
TIMEOUT_S = 300
"""Generous: a busy machine is no failure."""


def write_data(path: Path, num_conversations: int = 160, seed: int = 0) -> Path:
    """sharegpt conversations in which the answer repeats the question backwards: there is something to learn."""
    chance = random.Random(seed)
    with open(path, "w", encoding="utf-8") as out:
        for _ in range(num_conversations):
            words = [chance.choice(WORDS) for _ in range(chance.randint(3, 20))]
            turns = [{"from": "human", "value": " ".join(words)}, {"from": "gpt", "value": " ".join(reversed(words))}]
            if chance.random() < 0.3:
                turns.insert(0, {"from": "system", "value": "You are Dolphin."})
            out.write(json.dumps({"conversations": turns}) + "\n")
    return path


def write_model(folder: Path, hidden: int = 32, layers: int = 2) -> Path:
    """A byte-level tokenizer and random weights in fp32, as a folder that transformers loads."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token="<|im_end|>", pad_token="<|finetune_right_pad_id|>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=fast.bos_token_id, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_job(root: Path, name: str, *, nproc: int = 1, **groups: dict[str, Any]) -> RunDir:
    """A run folder `root/name` with its train.json; model and data are made in `root` once and shared by its runs.

    `groups` override the specification's groups, for example `train={"zero": 3}`.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "base").exists():
        write_model(root / "base")
    if not (root / "data.jsonl").exists():
        write_data(root / "data.jsonl")
    run = RunDir(root / name)
    run.path.mkdir()
    spec: dict[str, Any] = {
        "name": "tiny",
        "model": {"base": str(root / "base"), "chat_template": "chatml"},
        "data": {"sources": [{"path": str(root / "data.jsonl")}], "sequence_length": 96, "validation_fraction": 0.1},
        "train": {
            "max_steps": 20, "global_batch": 4, "micro_batch": 2, "learning_rate": 3e-3, "warmup_steps": 2,
            "precision": "fp32", "zero": 0, "evaluate_every": "never",
            "unfrozen": ["mlp", "norm", "lm_head", "layers.1.self_attn"],
        },
        "checkpoint": {"every": {"steps": 1000}},
    }  # fmt: skip
    for group, settings in groups.items():
        spec[group] = spec.get(group, {}) | settings
    job = NodeJob.model_validate(
        {"run_id": name, "run_dir": str(run.path), "cache_dir": str(root / "cache"), "nproc": nproc, "device": "cpu",
         "spec": spec}
    )  # fmt: skip
    run.train_json.write_text(job.model_dump_json(indent=1))
    return run


def environment(**extra: str) -> dict[str, str]:
    """For the supervisor: one thread a rank, no GPU."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | extra


def command(run: RunDir) -> list[str]:
    return [sys.executable, "-m", "trainer.supervise", str(run.train_json)]


def start(run: RunDir, **extra: str) -> subprocess.Popen[bytes]:
    """The real supervisor on the run, its output appended to the run's log.txt."""
    with open(run.log, "ab") as log:
        return subprocess.Popen(
            command(run), stdout=log, stderr=subprocess.STDOUT, env=environment(**extra), start_new_session=True,
        )  # fmt: skip


def train(run: RunDir, *, expect: int = 0, **extra: str) -> RunDir:
    """Run the supervisor to its end and check its exit code; the log's end is shown where it is another."""
    code = start(run, **extra).wait(TIMEOUT_S)
    assert code == expect, f"exit {code}, expected {expect}:\n{run.log.read_text()[-3000:]}"
    return run


def losses(run: RunDir) -> list[float]:
    """Loss of every step, in order; of a step that was trained again, the last."""
    by_step = {line["step"]: line["loss"] for line in run.read_metrics() if "loss" in line}
    return [by_step[step] for step in sorted(by_step)]


def weights_sha256(run: RunDir) -> str:
    """Of the exported model's weights."""
    digest = hashlib.sha256()
    for path in sorted(run.model.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
