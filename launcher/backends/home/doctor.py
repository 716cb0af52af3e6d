"""What `dolphin doctor` finds for runs on this machine: the trainer's packages, a compiler, GPUs. Loads no torch."""

from __future__ import annotations

import os
import shutil

from launcher.backends.findings import Finding, Health, installed_version
from launcher.backends.home.machine import local_gpus


def checks() -> list[Finding]:
    return [*check_trainer(), *check_build_tools(), *check_gpus()]


def check_trainer() -> list[Finding]:
    """The packages of the extra `train`, by their metadata."""
    findings = []
    for package in ("torch", "transformers", "datasets", "deepspeed"):
        version = installed_version(package)
        if version is None:
            advice = "pip install torch first and alone, then 'dolphin-launcher[train]'" if package == "torch" else ""
            advice = advice or "pip install 'dolphin-launcher[train]'"
            findings.append(Finding("local", package, Health.MISSING, "not installed", advice))
        else:
            findings.append(Finding("local", package, Health.OK, version))
    return findings


def check_build_tools() -> list[Finding]:
    """On a CPU nothing is built; on a GPU DeepSpeed and Triton may build kernels at the first start."""
    compiler = next(
        (path for name in (os.environ.get("CXX"), "c++", "g++") if name and (path := shutil.which(name))), None
    )
    if compiler is not None:
        return [Finding("local", "C++ compiler", Health.OK, compiler)]
    advice = "needed only where kernels are built, on a GPU: apt-get install g++ (or your system's)"
    return [Finding("local", "C++ compiler", Health.NOTE, "none", advice)]


def check_gpus() -> list[Finding]:
    gpus = local_gpus()
    if not gpus:
        advice = "only small models train on a CPU; `nvidia-smi` must list a GPU for more"
        return [Finding("local", "GPU", Health.NOTE, "none", advice)]
    name, memory_mib = gpus[0]
    return [
        Finding("local", "GPU", Health.OK, f"{len(gpus)} x {name}{f', {memory_mib:,} MiB each' if memory_mib else ''}")
    ]
