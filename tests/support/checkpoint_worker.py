"""Ranks of the checkpoint tests: real engines and a real CheckpointManager on random batches, many runs in few starts.

    python -m tests.support.checkpoint_worker plan.json

plan.json is a list of phases {nproc, runs}; the ranks of each are forked off one process that has imported everything,
which saves the ten seconds that every rank under torchrun takes to start. A run is {run_dir, out, stage, precision,
seed, steps, save_at, hidden?, momentum?, slow_copy_s?, copy_from?, store?, checkpoint?, train?, plan_key?, attempt?}: it resumes from
what its run folder holds, trains to `steps`, and rank 0 writes {losses, resumed_at, error, ...} to `out`. Losses are exact: float.hex().
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.checkpoint.copying import Copying
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.resume import Course
from trainer.checkpoint.trainer_state import TrainerState
from trainer.data.batch import Batch, Share
from trainer.engine import determinism
from trainer.engine import optimizer as optim
from trainer.engine.engine import Engine, initialize_distributed, sum_over_ranks
from trainer.engine.zero_state import trainable_shapes
from trainer.model import attention
from trainer.run.exits import BadInput, TrainingFailed
from trainer.run.optimizer_state import OPTIMIZER_STATES, OptimizerState, StateTensor
from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob

GLOBAL_BATCH, LENGTH, VOCABULARY = 4, 16, 97
LEARNING_RATE = 2e-3
DEVICE = os.environ.get("CHECKPOINT_DEVICE", "cpu")


def job_of(run: dict[str, Any], world_size: int) -> NodeJob:
    train = {
        "global_batch": GLOBAL_BATCH, "micro_batch": 1, "zero": run["stage"], "precision": run["precision"],
        "learning_rate": LEARNING_RATE, "weight_decay": 0.1, "max_steps": 1000,
    }  # fmt: skip
    spec: dict[str, Any] = {
        "name": "checkpoints",
        "model": {"base": "none"},
        "data": {"sources": [{"path": "none"}], "sequence_length": LENGTH},
        "train": {**train, **run.get("train", {})},
        "checkpoint": {"store": run.get("store"), **run.get("checkpoint", {})},
    }
    return NodeJob.model_validate(
        {
            "run_id": "run-1", "run_dir": run["run_dir"], "cache_dir": run["run_dir"], "nproc": world_size,
            "device": DEVICE, "spec": spec,
        }
    )  # fmt: skip


def model_of(seed: int, precision: str, hidden: int = 64) -> torch.nn.Module:
    """A tiny Llama. `seed` is of the trained weights; what is frozen is the same for all, as a base model's would be."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=2 * hidden - 3, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    kind = attention.usable("auto", DEVICE, precision)[0]
    model = LlamaForCausalLM._from_config(config, attn_implementation=kind)
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].self_attn.requires_grad_(False)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.to(torch.bfloat16 if precision == "bf16" else torch.float32)


def batch_of(step: int, rank: int, world_size: int, index: int) -> Batch:
    """Sequence `index` of this rank's share of the step: the global batch does not depend on the number of ranks."""
    number = rank * (GLOBAL_BATCH // world_size) + index
    generator = torch.Generator().manual_seed(1000 * step + number)
    ids = torch.randint(VOCABULARY, (1, LENGTH), generator=generator)
    labels = (ids * 3 + 1) % VOCABULARY
    positions, bounds = torch.arange(LENGTH)[None], torch.tensor([0, LENGTH], dtype=torch.int32)
    return Batch.of(ids, labels, torch.ones(1, LENGTH), positions, bounds)


def train(run: dict[str, Any], rank: int, world_size: int, device: torch.device) -> dict[str, Any]:
    job = job_of(run, world_size)
    if job.spec.train.deterministic:
        determinism.ask()
    attempt = run.get("attempt", 1)
    folder = RunDir(job.run_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    engine = Engine(
        job, model_of(run["seed"], run["precision"], run.get("hidden", 64)), GLOBAL_BATCH // world_size, device
    )
    result: dict[str, Any] = {"losses": {}, "norms": {}, "error": None, "resumed_at": None}
    try:
        manager = CheckpointManager(
            job, engine.deepspeed, Course(run.get("plan_key", "plan"), 1000, 10), share=Share(rank, world_size, 1),
            attempt=attempt, emit=partial(folder.emit, attempt=attempt) if rank == 0 else None,
        )  # fmt: skip
        resumed = manager.resume()
        state = resumed or TrainerState(attempt=attempt)
        result["resumed_at"] = resumed.step if resumed else None
        while state.step < run["steps"]:
            manager.check()
            losses = [
                engine.forward_backward(batch_of(state.step, rank, world_size, index), GLOBAL_BATCH * LENGTH)
                for index in range(GLOBAL_BATCH // world_size)
            ]
            (loss,) = sum_over_ranks(torch.stack(losses).sum(), device=device)
            norm = engine.apply(LEARNING_RATE)
            state.step += 1
            result["norms"][state.step] = norm
            result["losses"][state.step] = (loss / (GLOBAL_BATCH * LENGTH)).hex()
            if state.step in run.get("save_at", []):
                manager.save(state, wait=run.get("wait", False))
                time.sleep(run.get("pause_s", 0.0))
        manager.finish()
        if device.type == "cuda":
            result["allocated_bytes"] = torch.cuda.memory_allocated()
            dist.barrier()
            result["gpus_of_processes"] = gpus_of_processes()
            dist.barrier()
        result["trained_elements"] = sum(math.prod(shape) for shape in trainable_shapes(engine.deepspeed).values())
        result["is_lent"] = manager._snapshot.is_lent
        result["blocked_seconds"] = manager.last_blocked_seconds
        result["save_seconds"] = manager.last_save_seconds
        result["random"] = torch.rand(3).tolist()
    except (BadInput, TrainingFailed) as error:
        result["error"] = f"{type(error).__name__}: {error}"
        result["cause"] = type(error.__cause__).__name__
    return result


def gpus_of_processes() -> list[str]:
    """The GPU of every context on this machine, one entry each: a process that has two is there twice."""
    asked = ["nvidia-smi", "--query-compute-apps=gpu_uuid", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()


@contextlib.contextmanager
def slow_copy(seconds: float) -> Iterator[None]:
    """What a save needs the state for starts `seconds` late, when the next update is ready to change it."""
    run = Copying.run

    def late(copying: Copying, copy: Callable[[], Any]) -> Any:
        time.sleep(seconds)
        return run(copying, copy)

    with mock.patch.object(Copying, "run", late if seconds else run):
        yield


MOMENTUM = OptimizerState(moments=(StateTensor("momentum_buffer"),))


@contextlib.contextmanager
def momentum(is_wanted: bool) -> Iterator[None]:
    """Gradient descent with momentum in AdamW's place: one entry in each of the two tables, and nothing else."""

    def make(groups: list[dict[str, Any]], settings: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9)

    entries = {"adamw": (MOMENTUM, optim.Kind(make, str))} if is_wanted else {}
    with (
        mock.patch.dict(OPTIMIZER_STATES, {name: kept for name, (kept, _) in entries.items()}),
        mock.patch.dict(optim.OPTIMIZERS, {name: kind for name, (_, kind) in entries.items()}),
    ):
        yield


def do_phase(nproc: int, runs: list[dict[str, Any]], rank: int, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(nproc), LOCAL_WORLD_SIZE=str(nproc))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    _, _, device = initialize_distributed(DEVICE, print)
    for run in runs:
        with slow_copy(run.get("slow_copy_s", 0.0)), momentum(run.get("momentum", False)):
            result = train(run, rank, nproc, device)
        if rank == 0:
            Path(run["out"]).write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    for phase in json.loads(Path(sys.argv[1]).read_text()):
        for run in phase["runs"]:
            if "copy_from" in run:
                shutil.copytree(run["copy_from"], run["run_dir"])
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        ranks = [
            fork.Process(target=do_phase, args=(phase["nproc"], phase["runs"], rank, port))
            for rank in range(phase["nproc"])
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(f"ranks ended with {[process.exitcode for process in ranks]}")


if __name__ == "__main__":
    main()
