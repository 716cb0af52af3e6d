"""What `dolphin doctor` finds for containers: the SDK, an engine that answers, GPUs for it, a container that
starts, room for the image, the image.

Leaves nothing behind. Refuses to know runs.
"""

from __future__ import annotations

import os
import shutil
import socket

from launcher.backends.checks import Check, Health, installed_version
from launcher.backends.docker import engine, image, trial
from launcher.backends.docker.endpoint import endpoint, local_socket
from launcher.backends.home.machine import local_gpus
from launcher.runs import ledger
from launcher.runs.errors import BackendError, BadUsage, LauncherError
from launcher.units import size

BACKEND = "docker"
NEEDED_BYTES = {"cpu": 8_000_000_000, "cuda": 60_000_000_000}
"""To build dolphin's image by variant: the image and the stages that it is built from."""


def checks() -> list[Check]:
    """The SDK, an engine that answers, and what that engine has."""
    sdk = installed_version("docker")
    results = [
        Check("docker", "docker SDK", Health.OK, sdk)
        if sdk
        else Check("docker", "docker SDK", Health.MISSING, "not installed", "pip install 'dolphin-launcher[docker]'")
    ]
    try:
        at, path = endpoint(), local_socket()
    except BackendError as error:
        return [*results, Check("docker", "daemon", Health.MISSING, "none of this machine", str(error))]
    problem = _ping_problem(path)
    if problem is not None:
        return [*results, Check("docker", "daemon", Health.MISSING, f"{path} ({at.origin})", problem)]
    results.append(Check("docker", "daemon", Health.OK, f"{path} ({at.origin})"))
    if sdk is None:
        return results
    return [*results, *_of_engine()]


def _of_engine() -> list[Check]:
    """One result a check; a missing one where the engine refuses to be asked."""
    gpus = local_gpus()
    variant = "cuda" if gpus else "cpu"
    try:
        client = engine.connect(timeout_s=10)
        found = [_gpus(client, len(gpus))] if gpus else []
        return [*found, _container(client), _image(client, variant), _disk(client, variant)]
    except BackendError as error:
        return [Check(BACKEND, "engine", Health.MISSING, "cannot be used", str(error))]


def _gpus(client, num_gpus: int) -> Check:  # type: ignore[no-untyped-def]
    if engine.has_gpu_runtime(client):
        return Check(BACKEND, "GPUs", Health.OK, f"{num_gpus} can be given to containers")
    advice = "install nvidia-container-toolkit and restart docker, or set CUDA_VISIBLE_DEVICES= to use the CPU"
    return Check(BACKEND, "GPUs", Health.MISSING, "no GPU runtime in the engine", advice)


def _container(client) -> Check:  # type: ignore[no-untyped-def]
    try:
        home = ledger.home()
    except BadUsage as error:
        return Check(BACKEND, "container", Health.NOTE, "none was tried", str(error))
    if not trial.is_possible(client):
        return Check(BACKEND, "container", Health.NOTE, "none was tried", "the trial has no program for this machine")
    folder = next(path for path in (home, *home.parents) if path.is_dir())
    problem = trial.problem_of(client, folder)
    if problem is None:
        return Check(BACKEND, "container", Health.OK, f"one started and wrote to {folder}")
    return Check(BACKEND, "container", Health.MISSING, "none can be used", problem)


def _image(client, variant: str) -> Check:  # type: ignore[no-untyped-def]
    try:
        name = image.own_tag(image.ROOT, image.build_arguments(variant))
    except LauncherError as error:
        return Check(BACKEND, "image", Health.NOTE, "none of its own", str(error))
    if image.is_there(client, name):
        return Check(BACKEND, "image", Health.OK, name)
    return Check(BACKEND, "image", Health.NOTE, "not built yet", f"the first launch builds {name}, which takes minutes")


def _disk(client, variant: str) -> Check:  # type: ignore[no-untyped-def]
    with engine.explained("asking the engine for its folder"):
        folder = client.info().get("DockerRootDir") or "/"
    existing = folder if os.path.isdir(folder) else "/"
    free_bytes = shutil.disk_usage(existing).free
    found = f"{folder}, {size(free_bytes)} free"
    if free_bytes < NEEDED_BYTES[variant]:
        advice = f"building the image needs {size(NEEDED_BYTES[variant])}; `docker system prune` frees some"
        return Check(BACKEND, "disk", Health.NOTE, found, advice)
    return Check(BACKEND, "disk", Health.OK, found)


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
