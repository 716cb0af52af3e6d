"""Time of training steps and of everything around them: `bench/training.py MODEL DATA.jsonl [--steps 20] [--nproc N] [--zero S]
[--adapter lora] [--trl PYTHON]`.

Runs the real supervisor on a folder of its own: sequence 1,024 packed, micro batch 2, fp32, no checkpointing of
activations, no evaluation. Prints seconds inside the steps (from metrics.jsonl), seconds outside them, CPU seconds of
the whole tree, inside and outside, and the losses' hash, so that two runs can be seen to do the same work. Two runs of one step come
first: one prepares the data, and steps' CPU seconds are what a run of many takes above the other. With one rank, what a run is held
against is measured right after it, every time (training_beside.py): the floor (the steps' matrix products alone), a plain loop of
transformers on the same batches, and TRL where `--trl` names a Python that has it; `--adapter lora` trains the same LoRA (rank 64,
alpha 32, all linear layers) in all of them. A share of floor and attention over 1 says that the machine was too busy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--adapter", choices=["lora"], help="train one, in place of the whole model")
    parser.add_argument("--trl", help="a Python that has trl and accelerate besides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder), "prepares", 1)
        first = measure(options, Path(folder), "first", 1)
        for index in range(options.runs):
            run = measure(options, Path(folder), f"run-{index}", options.steps)
            per_step = (run["cpu_s"] - first["cpu_s"]) / (options.steps - 1)
            run |= {"inside_cpu_s": round(per_step * options.steps, 2)}
            run |= {"outside_cpu_s": round(run["cpu_s"] - run["inside_cpu_s"], 2)}
            print(json.dumps(run), flush=True)
            if options.nproc == 1:
                print(json.dumps(beside(options, Path(folder) / f"run-{index}", run)), flush=True)


def beside(options: argparse.Namespace, folder: Path, run: dict[str, Any]) -> dict[str, float]:
    """What the run in `folder` is held against, and its shares."""
    found: dict[str, float] = {}
    threads = os.environ.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    environment = {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": threads}
    for what, python in (("floor", sys.executable), ("plain", sys.executable), ("trl", options.trl)):
        if python is not None:
            command = [python, str(Path(__file__).with_name("training_beside.py")), str(folder), what]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
            found |= json.loads(done.stdout.splitlines()[-1])
    shares = {
        "share_of_floor": found["floor_s"] / run["inside_s"],
        "share_of_floor_and_attention": (found["floor_s"] + found["attention_s"]) / run["inside_s"],
        "cpu_share_of_floor": found["floor_cpu_s"] / run["inside_cpu_s"],
        "cpu_share_of_floor_and_attention": (found["floor_cpu_s"] + found["attention_cpu_s"]) / run["inside_cpu_s"],
    }
    return found | {name: round(share, 3) for name, share in shares.items()}


def measure(options: argparse.Namespace, folder: Path, name: str, steps: int) -> dict[str, Any]:
    run = RunDir(folder / name)
    run.path.mkdir()
    spec = {
        "name": "bench",
        "model": {"base": str(options.model.resolve())},
        "data": {"sources": [{"path": str(options.data.resolve())}], "sequence_length": 1024},
        "train": {
            "max_steps": steps, "micro_batch": 2, "global_batch": 2 * options.nproc, "precision": "fp32",
            "zero": options.zero, "evaluate_at_start": False, "evaluate_every": "never", "learning_rate": 1e-4,
            "adapter": None if options.adapter is None else {"type": options.adapter},
        },
        "checkpoint": {"every": {"steps": 1000}},
    }  # fmt: skip
    job = NodeJob.model_validate(
        {"run_id": name, "run_dir": str(run.path), "cache_dir": str(folder / "cache"),
         "nproc": options.nproc, "device": "cpu", "spec": spec}
    )  # fmt: skip
    run.train_json.write_text(job.model_dump_json())
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "trainer.supervise", str(run.train_json)],
        check=True, stdout=subprocess.DEVNULL, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [line for line in run.read_metrics() if "loss" in line]
    inside = sum(line["seconds"] for line in lines)
    return {
        "steps": len(lines),
        "inside_s": round(inside, 2),
        "outside_s": round(wall - inside, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "losses_sha256": hashlib.sha256(json.dumps([line["loss"] for line in lines]).encode()).hexdigest()[:12],
    }


if __name__ == "__main__":
    main()
