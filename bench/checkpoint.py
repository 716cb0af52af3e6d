"""What a save costs: seconds that training is blocked, asynchronous against synchronous, bytes, and seconds to go on.

    python bench/checkpoint.py [--ranks 2] [--zero 2] [--offload optimizer] [--hidden 768] [--layers 12] [--folder /tmp/bench-checkpoint]

Starts torchrun twice on a Llama of random weights (134 M parameters where not said otherwise), all of them trained:
once to save in several ways, once to resume. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

STARTED = float(os.environ.get("BENCH_STARTED", time.time()))
VOCABULARY, LENGTH, NUM_SAVES = 32_000, 8, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", type=int, default=2)
    parser.add_argument("--offload", choices=["none", "optimizer"], default="none")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench-checkpoint"))
    parser.add_argument("--part", choices=["save", "resume"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        worker(options)
        return
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    for part in ("save", "resume"):
        env = {
            **os.environ, "BENCH_STARTED": str(time.time()), "PYTHONWARNINGS": "ignore::FutureWarning",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }  # fmt: skip
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.ranks)))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        subprocess.run([*torchrun, __file__, *sys.argv[1:], "--part", part], env=env, check=True)
    show(options)


def worker(options: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.checkpoint.manager import CheckpointManager
    from trainer.checkpoint.resume import Course
    from trainer.checkpoint.trainer_state import TrainerState
    from trainer.data.batch import Batch, Share
    from trainer.engine.engine import Engine, initialize_distributed
    from trainer.run.spec import NodeJob

    rank, world_size, device = initialize_distributed(options.device, print)
    imported_s = time.time() - STARTED
    train = {"global_batch": world_size, "micro_batch": 1, "zero": options.zero, "offload": options.offload}
    train["precision"] = "bf16" if options.device == "cuda" else "fp32"  # bf16 is slow on a CPU, and no part of a save
    job = NodeJob.model_validate(
        {
            "run_id": "bench", "run_dir": str(options.folder), "cache_dir": str(options.folder), "nproc": world_size,
            "device": options.device,
            "spec": {"name": "bench", "model": {"base": "none"}, "data": {"sources": [{"path": "none"}]}, "train": train},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=options.hidden, intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers, num_attention_heads=12, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16 if options.device == "cuda" else torch.float32)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = Engine(job, model, 1, device)
    manager = CheckpointManager(
        job, engine.deepspeed, Course("bench", 10_000, 10_000), share=Share(rank, world_size, 1), attempt=1, emit=None
    )
    began = time.time()
    state = manager.resume() or TrainerState()
    restored_s = time.time() - began

    def step() -> float:
        dist.barrier()
        began = time.perf_counter()
        ids = torch.randint(VOCABULARY, (1, LENGTH))
        bounds = torch.tensor([0, LENGTH], dtype=torch.int32)
        batch = Batch.of(ids, ids, torch.ones(1, LENGTH), torch.arange(LENGTH)[None], bounds)
        engine.forward_backward(batch, world_size * LENGTH)
        engine.apply(1e-5)
        state.step += 1
        return time.perf_counter() - began

    if options.part == "resume":
        first_s = step()
        found = {"resumed_at": state.step - 1, "start_to_first_step_s": time.time() - STARTED, "restored_s": restored_s}
        found |= {"imported_s": imported_s, "first_step_s": first_s}
    else:
        step()
        found = {
            "num_parameters": num_parameters,
            "synchronous_s": [],
            "blocked_s": [],
            "whole_s": [],
            "deepspeed_s": [],
        }
        found |= {"quiet_step_s": [step() for _ in range(3)], "busy_step_s": []}
        for _ in range(NUM_SAVES):
            step()
            found["synchronous_s"].append(manager.save(state, wait=True))
            step()
            manager.save(state)
            found["busy_step_s"].append(step())
            manager.finish()
            found["blocked_s"].append(manager.last_blocked_seconds)
            found["whole_s"].append(manager.last_save_seconds)
        for _ in range(2):
            dist.barrier()
            began_save = time.perf_counter()
            engine.deepspeed.save_checkpoint(str(options.folder / "deepspeed"))
            dist.barrier()
            found["deepspeed_s"].append(time.perf_counter() - began_save)
    if rank == 0:
        (options.folder / f"{options.part}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def show(options: argparse.Namespace) -> None:
    save, resume = (json.loads((options.folder / f"{part}.json").read_text()) for part in ("save", "resume"))
    newest = max((options.folder / "checkpoints").iterdir())
    size = sum(path.stat().st_size for path in newest.iterdir())
    deepspeed = max((options.folder / "deepspeed").glob("global_step*"), key=lambda path: path.stat().st_mtime)
    their_size = sum(path.stat().st_size for path in deepspeed.iterdir())

    def middle(values: list[float]) -> float:
        return statistics.median(values[1:] or values)  # the first one touches new memory

    blocked, whole = middle(save["blocked_s"]), middle(save["synchronous_s"])
    rows = [
        ("parameters, all trained", f"{save['num_parameters'] / 1e6:.0f} M"),
        ("ranks, ZeRO stage, device", f"{options.ranks}, {options.zero}, {options.device}"),
        ("offload", options.offload),
        ("blocked by an asynchronous save", f"{blocked:.3f} s"),
        ("blocked by a synchronous save of the same state", f"{whole:.2f} s"),
        ("share", f"{100 * blocked / whole:.1f}%"),
        ("asynchronous save, until it is committed", f"{middle(save['whole_s']):.2f} s"),
        ("DeepSpeed's save_checkpoint, blocked", f"{middle(save['deepspeed_s']):.2f} s"),
        ("a step with nothing in flight", f"{middle(save['quiet_step_s']):.2f} s"),
        ("the step behind an asynchronous save", f"{middle(save['busy_step_s']):.2f} s"),
        ("bytes on disk", f"{size / 1e6:,.0f} MB ({size / save['num_parameters']:.2f} a parameter)"),
        ("bytes on disk, DeepSpeed's", f"{their_size / 1e6:,.0f} MB"),
        ("from start to the first resumed step", f"{resume['start_to_first_step_s']:.1f} s"),
        ("of it: imports and process group", f"{resume['imported_s']:.1f} s"),
        ("of it: finding, verifying and loading the checkpoint", f"{resume['restored_s']:.2f} s"),
        ("resumed at step", str(resume["resumed_at"])),
    ]
    print("| what | measured |\n| --- | --- |")
    for what, measured in rows:
        print(f"| {what} | {measured} |")


if __name__ == "__main__":
    main()
