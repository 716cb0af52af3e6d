"""Memory and time of loading a base on several CPU ranks: `python bench/load.py [ranks] [hidden] [layers] [stage]`.

Writes a random model once, then starts the ranks; each loads it as the trainer does, hands it to the engine, and prints its peak
of memory of its own (RssAnon, sampled every 5 ms, above what it had before), what it keeps, and the seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.engine.engine import Engine, initialize_distributed
from trainer.model import build
from trainer.run.spec import NodeJob


class Vocabulary:
    def __len__(self) -> int:
        return 32_000


def own_memory() -> float:
    """MB of this process that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1e3


def load(rank: int, ranks: int, port: int, base: str, stage: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    _, _, device = initialize_distributed("cpu", print)
    spec = {
        "name": "load", "model": {"base": base}, "data": {"sources": [{"path": "none"}], "sequence_length": 64},
        "train": {"global_batch": ranks, "zero": stage, "precision": "bf16", "max_steps": 1},
    }  # fmt: skip
    told = {"run_id": "r", "run_dir": base, "cache_dir": base, "nproc": ranks, "device": "cpu", "spec": spec}
    job = NodeJob.model_validate(told)
    dist.barrier()
    before, peak, is_over = own_memory(), [0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.005):
            peak[0] = max(peak[0], own_memory() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    begun = time.perf_counter()
    model = build.build(job, Vocabulary())  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0." in name)  # masters would hide what loading takes
    loaded = peak[0]
    engine = Engine(job, model, 1, device)
    seconds = time.perf_counter() - begun
    is_over.set()
    thread.join()
    kept = own_memory() - before
    weights = engine.gathered(lambda _, parameter: parameter.dtype, lambda: None)
    total = sum(len(names) * tensor.double().sum().item() for names, tensor in weights)
    print(json.dumps({"rank": rank, "loading_mb": round(loaded), "peak_mb": round(peak[0]), "kept_mb": round(kept), "seconds": round(seconds, 1), "sum": total}), flush=True)  # fmt: skip
    dist.destroy_process_group()


def main() -> None:
    ranks, hidden, layers, stage = (
        int(value) for value in [*sys.argv[1:], *("4", "1024", "16", "3")[len(sys.argv) - 1 :]]
    )
    with tempfile.TemporaryDirectory() as base, socket.create_server(("127.0.0.1", 0)) as found:
        config = LlamaConfig(vocab_size=32_000, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=16)  # fmt: skip
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(base)
        total = sum(tensor.double().sum().item() for tensor in model.state_dict().values())
        told = {"parameters": model.num_parameters(), "model_mb": round(2 * model.num_parameters() / 1e6), "sum": total}
        print(json.dumps({**told, "ranks": ranks, "stage": stage}), flush=True)
        del model
        port = found.getsockname()[1]
        found.close()
        fork = multiprocessing.get_context("spawn")
        processes = [fork.Process(target=load, args=(rank, ranks, port, base, stage)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        sys.exit(max(process.exitcode or 0 for process in processes))


if __name__ == "__main__":
    main()
