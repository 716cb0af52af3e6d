"""What `dolphin doctor` asks of an engine that answers: GPUs for containers, room for the image, the image itself.

Changes nothing. Refuses to know runs.
"""

from __future__ import annotations

import os
import shutil

from launcher.backends.base import BackendError
from launcher.backends.docker import engine, image
from launcher.backends.findings import Finding, Health
from launcher.backends.home.machine import local_gpus
from launcher.runs.errors import LauncherError
from launcher.units import size

BACKEND = "docker"
NEEDED_BYTES = {"cpu": 8_000_000_000, "cuda": 60_000_000_000}
"""To build dolphin's image by variant: the image and the stages that it is built from."""


def findings() -> list[Finding]:
    """One finding a check; a missing one where the engine refuses to be asked."""
    gpus = local_gpus()
    variant = "cuda" if gpus else "cpu"
    try:
        client = engine.connect(timeout_s=10)
        found = [_gpus(client, len(gpus))] if gpus else []
        return [*found, _image(client, variant), _disk(client, variant)]
    except BackendError as error:
        return [Finding(BACKEND, "engine", Health.MISSING, "cannot be used", str(error))]


def _gpus(client, num_gpus: int) -> Finding:  # type: ignore[no-untyped-def]
    if engine.has_gpu_runtime(client):
        return Finding(BACKEND, "GPUs", Health.OK, f"{num_gpus} can be given to containers")
    advice = "install nvidia-container-toolkit and restart docker, or set CUDA_VISIBLE_DEVICES= to use the CPU"
    return Finding(BACKEND, "GPUs", Health.MISSING, "no GPU runtime in the engine", advice)


def _image(client, variant: str) -> Finding:  # type: ignore[no-untyped-def]
    try:
        name = image.own_tag(image.ROOT, image.build_arguments(variant))
    except LauncherError as error:
        return Finding(BACKEND, "image", Health.NOTE, "none of its own", str(error))
    if image.is_there(client, name):
        return Finding(BACKEND, "image", Health.OK, name)
    return Finding(
        BACKEND, "image", Health.NOTE, "not built yet", f"the first launch builds {name}, which takes minutes"
    )


def _disk(client, variant: str) -> Finding:  # type: ignore[no-untyped-def]
    with engine.explained("asking the engine for its folder"):
        folder = client.info().get("DockerRootDir") or "/"
    existing = folder if os.path.isdir(folder) else "/"
    free_bytes = shutil.disk_usage(existing).free
    found = f"{folder}, {size(free_bytes)} free"
    if free_bytes < NEEDED_BYTES[variant]:
        advice = f"building the image needs {size(NEEDED_BYTES[variant])}; `docker system prune` frees some"
        return Finding(BACKEND, "disk", Health.NOTE, found, advice)
    return Finding(BACKEND, "disk", Health.OK, found)
