"""What confines the container of a run, whoever starts it: an engine's library on this machine, `docker run` on a node.

Owns the rights, limits, user and home of such a container. Refuses to know engines, mounts and jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

CONFINEMENT: Mapping[str, object] = {
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 16384,
}
"""Arguments of the engine: training needs no right of a superuser, and eight ranks with their threads some hundred each."""
GPU_LIMITS: Mapping[str, int] = {"memlock": -1, "stack": 1 << 26}
"""ulimits of a container with GPUs: NCCL locks memory that it shares with a GPU."""
HOME: Mapping[str, str] = {
    # The user of the run has no entry in the image's /etc/passwd.
    "HOME": "/tmp",
    "USER": "dolphin",
    "LOGNAME": "dolphin",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "PYTHONSAFEPATH": "1",  # an image of one's own may start in a folder that holds anything
}
MAPPINGS = ("rootless", "userns")
"""Security options of an engine that change which user a container's process is outside."""
_USER = "@USER@"
"""In the options for a node: that of the process there."""


def user_of(security_options: Iterable[str], user: str) -> dict[str, str]:
    """Settings with which a process in the container is this `uid:gid` for files outside, whatever the engine maps.

    A rootless engine runs as the user, who is root in its containers; an engine that maps users for all containers
    (userns-remap) is asked not to for this one, whose process is no root.
    """
    options = set(security_options)
    if "rootless" in options:
        return {"user": "0:0"}
    return {"user": user} | ({"userns_mode": "host"} if "userns" in options else {})


def for_a_node(cache_dir: str) -> dict[str, object]:
    """The same for `docker run` on a node, as relay.json holds it: what an engine there maps is known there alone."""
    plain = [f"--{key.replace('_', '-')}={one}" for key, value in CONFINEMENT.items() for one in _listed(value)]
    environment = {**HOME, "HF_HOME": f"{cache_dir}/huggingface"}
    return {
        "options": [*plain, *(f"--env={name}={value}" for name, value in environment.items())],
        "gpu_options": ["--gpus=all", *(f"--ulimit={name}={limit}" for name, limit in GPU_LIMITS.items())],
        "user_options": {mapping: _user_flags(user_of([mapping], _USER)) for mapping in ("", *MAPPINGS)},
    }


def _user_flags(settings: Mapping[str, str]) -> list[str]:
    return [f"--{key.removesuffix('_mode')}={value}" for key, value in settings.items()]


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
