"""What this machine has for a run: its GPUs, its memory, and how many ranks that makes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.jobfile.spec import JobSpec


Gpu = tuple[str, int | None]
"""Name and memory in MiB, where the driver tells it."""
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


def local_gpus() -> list[Gpu]:
    """Each GPU that the run would see, in its order, by nvidia-smi and CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get(VISIBLE)
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return []
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode != 0:  # a driver without a device
        return []
    uuids, gpus = list[str](), list[Gpu]()
    for line in answer.stdout.splitlines():
        uuid, _, rest = line.partition(",")
        name, _, memory = rest.rpartition(",")
        if name:
            uuids.append(uuid.strip())
            gpus.append((name.strip(), int(memory) if memory.strip().isdigit() else None))
    if visible is None or not gpus:
        return gpus
    if visible.startswith("MIG-"):  # nvidia-smi does not tell how much of a GPU each of its parts has
        return [(gpus[0][0], None) for part in visible.split(",") if part.startswith("MIG-")]
    return [gpus[index] for index in _visible(visible, uuids)]


def _visible(setting: str, uuids: list[str]) -> list[int]:
    """Which of the machine's GPUs CUDA shows, in its order: whole numbers, or beginnings of uuids that fit one alone. It stops
    at the first that is neither, and shows none where one is named twice."""
    found: list[int] = []
    for part in setting.split(","):
        if setting.startswith("GPU-"):
            fitting = [index for index, uuid in enumerate(uuids) if part.startswith("GPU-") and uuid.startswith(part)]
            index = fitting[0] if len(fitting) == 1 else -1
        else:
            number = re.match(r"\+?[0-9]+", part.strip())
            index = int(number[0]) if number else -1
        if index in found:
            return []
        if not 0 <= index < len(uuids):
            break
        found.append(index)
    return found


def as_counted(environment: Mapping[str, str]) -> dict[str, str]:
    """For a run of this machine: its GPUs have the numbers that they have here, by their places on the bus. CUDA's own order
    begins with the fastest card."""
    return {ORDER: "PCI_BUS_ID", **environment}


def gpus_for_trainer() -> list[Gpu]:
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
