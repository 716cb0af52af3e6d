"""Time of 20 training steps and of everything around them: `bench/training.py MODEL DATA.jsonl [--nproc N] [--zero S]`.

Runs the real supervisor on a folder of its own: sequence 1,024 packed, micro batch 2, fp32, no checkpointing of
activations, no evaluation. Prints seconds inside the 20 steps (from metrics.jsonl), seconds outside them, CPU seconds of
the whole tree, and the losses' hash, so that two runs can be seen to do the same work.
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

from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.runs):
            print(json.dumps(measure(options, Path(folder), index)), flush=True)


def measure(options: argparse.Namespace, folder: Path, index: int) -> dict[str, float | str]:
    run = RunDir(folder / f"run-{index}")
    run.path.mkdir()
    spec = {
        "name": "bench",
        "model": {"base": str(options.model.resolve())},
        "data": {"sources": [{"path": str(options.data.resolve())}], "sequence_length": 1024},
        "train": {
            "max_steps": 20, "micro_batch": 2, "global_batch": 2 * options.nproc, "precision": "fp32",
            "zero": options.zero, "evaluate_at_start": False, "evaluate_every": "never", "learning_rate": 1e-4,
        },
        "checkpoint": {"every": {"steps": 1000}},
    }  # fmt: skip
    job = NodeJob.model_validate(
        {"run_id": f"run-{index}", "run_dir": str(run.path), "cache_dir": str(folder / "cache"),
         "nproc": options.nproc, "device": "cpu", "spec": spec}
    )  # fmt: skip
    run.train_json.write_text(job.model_dump_json())
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "trainer.supervise", str(run.train_json)],
        check=True, stdout=subprocess.DEVNULL, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    steps = [line for line in run.read_metrics() if "loss" in line]
    inside = sum(line["seconds"] for line in steps)
    return {
        "steps": len(steps),
        "inside_s": round(inside, 2),
        "outside_s": round(wall - inside, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "losses_sha256": hashlib.sha256(json.dumps([line["loss"] for line in steps]).encode()).hexdigest()[:12],
    }


if __name__ == "__main__":
    main()
