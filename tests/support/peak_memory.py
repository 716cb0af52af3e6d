"""Bytes that torch has allocated at most in real steps of one rank: `python -m tests.support.peak_memory` with a case on standard input.

A case is {config, stage, patterns, micro_batch, sequence_length, micro_batches, loss_chunk, gradient_checkpointing, offload, device};
prints {"allocated", "reserved", "context"} as JSON: `context` is what the card has in use beside the allocator. On a CPU, where torch
counts nothing, zeros: the steps run all the same.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.data.batch import Batch
from trainer.engine.engine import Engine, initialize_distributed
from trainer.model import attention, freeze
from trainer.run.spec import NodeJob
from trainer.supervise.rendezvous import RANKS_STORE

STEPS = 3


def measure(case: dict[str, Any]) -> dict[str, int]:
    _, _, device = initialize_distributed(case["device"], sys.exit)
    on_gpu = device.type == "cuda"
    sequences = case["micro_batch"] * case["micro_batches"]
    train = {key: case[key] for key in ("micro_batch", "loss_chunk", "gradient_checkpointing", "offload")}
    spec = {
        "name": "peak", "model": {"base": "none"}, "data": {"sources": [{"path": "none"}], "sequence_length": case["sequence_length"]},
        "train": {**train, "zero": case["stage"], "global_batch": sequences, "precision": "bf16"},
    }  # fmt: skip
    job = NodeJob.model_validate(
        {"run_id": "r", "run_dir": "/none", "cache_dir": "/none", "nproc": 1, "device": case["device"], "spec": spec}
    )
    kind = attention.usable("auto", job.device, "bf16", 0.0)[0]
    model = LlamaForCausalLM._from_config(LlamaConfig(**case["config"]), attn_implementation=kind, dtype=torch.bfloat16)
    if case["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    freeze.apply(model, case["patterns"])
    engine = Engine(job, model, case["micro_batches"], device)
    for step in range(STEPS):
        for index in range(case["micro_batches"]):
            engine.forward_backward(
                batch_of(case, step * case["micro_batches"] + index), sequences * case["sequence_length"]
            )
        engine.apply(1e-5)
    if not on_gpu:
        return {"allocated": 0, "reserved": 0, "context": 0}
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    return {
        "allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
        "context": total - free - reserved,
    }  # fmt: skip


def batch_of(case: dict[str, Any], seed: int) -> Batch:
    """Every token labelled, conversations of a quarter of a row."""
    rows, length = case["micro_batch"], case["sequence_length"]
    ids = torch.randint(case["config"]["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))
    part = length // 4
    positions = torch.arange(part).repeat(rows, 4)
    bounds = torch.arange(0, rows * length + 1, part, dtype=torch.int32)
    return Batch.of(ids, ids.roll(-1, 1), torch.ones(rows, length), positions, bounds)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ[RANKS_STORE] = f"{folder}/ranks"
        print(json.dumps(measure(json.load(sys.stdin))), flush=True)
        os._exit(0)
