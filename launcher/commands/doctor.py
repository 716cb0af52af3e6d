"""`dolphin doctor`: what this machine has for each backend, and what to do where something is missing.

Owns the checks, each a function that returns findings and changes nothing. Refuses to load torch and sky, and
docker unless an engine answers: it asks package metadata, the PATH and sockets, so that it works best where everything is broken.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata

from launcher.backends.findings import Finding, Health
from launcher.follow import screen
from launcher.runs import ledger
from launcher.runs.states import EXIT_CODES, EndReason
from launcher.units import size

_LOW_DISK_BYTES = 20_000_000_000
"""A small model with its checkpoints; the reference job needs 140 GB."""


def doctor_command(*, json_wanted: bool = False) -> int:
    """Print the findings; 0 where at least one backend has what it needs, 4 where none has."""
    findings = [finding for check in CHECKS for finding in check()]
    usable = usable_backends(findings)
    if json_wanted:
        print(json.dumps({"backends": usable, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        rows = [[f.backend, f.subject, f.health.value, f.found] for f in findings]
        screen.table(["for", "what", "", "found"], rows, file=sys.stdout)
        for finding in findings:
            if finding.advice:
                print(f"{finding.backend}, {finding.subject}: {finding.advice}")
        print(f"usable backends: {', '.join(usable) or 'none'}")
    return 0 if usable else EXIT_CODES[EndReason.BACKEND]


def usable_backends(findings: list[Finding]) -> list[str]:
    """Backends for which nothing is missing."""
    missing = {f.backend for f in findings if f.health is Health.MISSING}
    backends = dict.fromkeys(f.backend for f in findings if f.backend != "any")
    return [] if "any" in missing else [name for name in backends if name not in missing]


def check_python() -> list[Finding]:
    return [Finding("any", "python", Health.OK, f"{sys.version.split()[0]} at {sys.executable}")]


def check_home() -> list[Finding]:
    home = ledger.home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()  # permission bits say too little of read-only and full disks
    except OSError as error:
        advice = f"it cannot be written ({error.strerror}); set DOLPHIN_HOME to a folder of yours"
        return [Finding("any", "DOLPHIN_HOME", Health.MISSING, str(home), advice)]
    free_bytes = shutil.disk_usage(existing).free
    found = f"{home}, {size(free_bytes)} free"
    if free_bytes < _LOW_DISK_BYTES:
        advice = (
            f"less than {size(_LOW_DISK_BYTES)} for data, checkpoints and models; set DOLPHIN_HOME to a larger disk"
        )
        return [Finding("any", "DOLPHIN_HOME", Health.NOTE, found, advice)]
    return [Finding("any", "DOLPHIN_HOME", Health.OK, found)]


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
    from launcher.backends.home.machine import local_gpus

    gpus = local_gpus()
    if not gpus:
        advice = "only small models train on a CPU; `nvidia-smi` must list a GPU for more"
        return [Finding("local", "GPU", Health.NOTE, "none", advice)]
    name, memory_mib = gpus[0]
    return [
        Finding("local", "GPU", Health.OK, f"{len(gpus)} x {name}{f', {memory_mib:,} MiB each' if memory_mib else ''}")
    ]


def check_docker() -> list[Finding]:
    """A daemon that answers, and the SDK."""
    sdk = installed_version("docker")
    findings = [
        Finding("docker", "docker SDK", Health.OK, sdk)
        if sdk
        else Finding("docker", "docker SDK", Health.MISSING, "not installed", "pip install 'dolphin-launcher[docker]'")
    ]
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        return [
            *findings,
            Finding(
                "docker",
                "daemon",
                Health.MISSING,
                host,
                "not a local engine, which --on docker needs; unset DOCKER_HOST",
            ),
        ]
    path = host.removeprefix("unix://")
    problem = _ping_problem(path)
    if problem is not None:
        return [*findings, Finding("docker", "daemon", Health.MISSING, path, problem)]
    findings.append(Finding("docker", "daemon", Health.OK, path))
    if sdk is None:
        return findings
    from launcher.backends.docker import doctor

    return [*findings, *doctor.findings()]


def check_sky() -> list[Finding]:
    # By metadata: a folder named `sky` in the working directory makes find_spec lie.
    version = installed_version("skypilot")
    if version is None:
        return [Finding("sky", "skypilot", Health.MISSING, "not installed", "pip install 'dolphin-launcher[sky]'")]
    return [Finding("sky", "skypilot", Health.OK, version, "`sky check` lists the clouds that it may use")]


CHECKS: list[Callable[[], list[Finding]]] = [
    check_python,
    check_home,
    check_trainer,
    check_build_tools,
    check_gpus,
    check_docker,
    check_sky,
]


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _ping_problem(path: str) -> str | None:
    """Why nobody answers on a docker socket; None where somebody does."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(3)
            connection.connect(path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = connection.recv(64)
    except FileNotFoundError:
        return "no such socket: install Docker Engine (Debian: apt-get install docker.io) and start it"
    except PermissionError:
        return "not allowed: add yourself to the group `docker` and log in again"
    except OSError as error:
        return f"does not answer ({error.strerror or error}): start it (systemctl start docker)"
    return None if b" 200 " in answer else f"answers {answer[:40]!r}: restart it"
