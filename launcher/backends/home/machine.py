"""What this machine has for a run: its GPUs, its memory, and how many ranks that makes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.jobfile.spec import JobSpec


def local_gpus() -> list[tuple[str, int | None]]:
    """Name and memory (MiB, where the driver tells it) of each GPU that the run would see, by nvidia-smi and
    CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return []
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode != 0:  # a driver without a device
        return []
    gpus: list[tuple[str, int | None]] = []
    for line in answer.stdout.splitlines():
        name, _, memory = line.rpartition(",")
        if name:
            gpus.append((name.strip(), int(memory) if memory.strip().isdigit() else None))
    return gpus if visible is None else gpus[: len(visible.split(","))]


def gpus_for_trainer() -> list[tuple[str, int | None]]:
    """As `local_gpus`; none where the trainer is not installed, which could not use them."""
    return local_gpus() if importlib.util.find_spec("torch") is not None else []


def memory_bytes() -> int:
    """All of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_ranks(job: JobSpec, num_gpus: int) -> int:
    """What the job states, as far as there are GPUs for it; on a CPU its `ranks_per_node`, else one."""
    if not num_gpus:
        return job.resources.ranks_per_node or 1
    return min(num_gpus, job.resources.ranks_per_node or job.resources.gpus_per_node or num_gpus)
