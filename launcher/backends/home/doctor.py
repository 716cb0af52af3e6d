"""What `dolphin doctor` finds for runs on this machine: the trainer's packages, a compiler, GPUs. Loads no torch."""

from __future__ import annotations

import os
import shutil

from launcher.backends.checks import Check, Health, installed_version
from launcher.backends.home.machine import local_gpus


def checks() -> list[Check]:
    return [*check_trainer(), *check_build_tools(), *check_gpus()]


def check_trainer() -> list[Check]:
    """The packages of the extra `train`, by their metadata."""
    results = []
    for package in ("torch", "transformers", "datasets", "deepspeed"):
        version = installed_version(package)
        if version is None:
            advice = "pip install torch first and alone, then 'dolphin-launcher[train]'" if package == "torch" else ""
            advice = advice or "pip install 'dolphin-launcher[train]'"
            results.append(Check("local", package, Health.MISSING, "not installed", advice))
        else:
            results.append(Check("local", package, Health.OK, version))
    return results


def check_build_tools() -> list[Check]:
    """On a CPU nothing is built; on a GPU DeepSpeed and Triton may build kernels at the first start."""
    compiler = next(
        (path for name in (os.environ.get("CXX"), "c++", "g++") if name and (path := shutil.which(name))), None
    )
    if compiler is not None:
        return [Check("local", "C++ compiler", Health.OK, compiler)]
    advice = "needed only where kernels are built, on a GPU: apt-get install g++ (or your system's)"
    return [Check("local", "C++ compiler", Health.NOTE, "none", advice)]


def check_gpus() -> list[Check]:
    gpus = local_gpus()
    if not gpus:
        advice = "only small models train on a CPU; `nvidia-smi` must list a GPU for more"
        return [Check("local", "GPU", Health.NOTE, "none", advice)]
    name, memory_mib = gpus[0]
    return [
        Check("local", "GPU", Health.OK, f"{len(gpus)} x {name}{f', {memory_mib:,} MiB each' if memory_mib else ''}")
    ]
