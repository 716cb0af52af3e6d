"""An optimizer in host memory: CPU seconds of one update of N elements, by torch's AdamW in its three forms and DeepSpeed's.

    python bench/offload.py [--elements 100_000_000] [--threads 2]

DeepSpeed's CPU Adam is built with the machine's C++ compiler at its first use (a minute or two); where there is none it is
left out. Everything in one process, in turns, the best of five rounds each.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja, for DeepSpeed's build
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch

ROUNDS = 5


def candidates(elements: int) -> dict[str, Callable[[], object]]:
    """Name -> one update of parameters of their own."""

    def parameter() -> torch.nn.Parameter:
        found = torch.nn.Parameter(torch.zeros(elements))
        found.grad = torch.full((elements,), 1e-3)
        return found

    forms = {"for loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    steps: dict[str, Callable[[], object]] = {
        f"torch.optim.AdamW, {name}": torch.optim.AdamW([parameter()], lr=1e-4, **form).step
        for name, form in forms.items()
    }
    try:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        steps["deepspeed.ops.adam.DeepSpeedCPUAdam"] = DeepSpeedCPUAdam([parameter()], lr=1e-4, adamw_mode=True).step
    except Exception as error:  # whatever its build fails with
        print(f"DeepSpeedCPUAdam: left out ({type(error).__name__})", file=sys.stderr)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=100_000_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = candidates(options.elements)
    best = dict.fromkeys(steps, (float("inf"), float("inf")))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            best[name] = min(best[name], (time.process_time() - cpu, time.perf_counter() - wall))
    print(f"{options.elements:,} elements, {options.threads} threads, torch {torch.__version__}")
    for name, (cpu, wall) in best.items():
        rate = 28 * options.elements / wall / 1e9
        print(f"  {name:40} {cpu:6.3f} CPU s  {wall:6.3f} s  {rate:5.1f} GB/s of parameter, gradient and moments")


if __name__ == "__main__":
    main()
