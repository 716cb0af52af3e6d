"""What the container of a run is made of: its mounts, environment, network and GPUs, as values. Pure but for looking at paths.

Everything is mounted under the name that it has on this machine, so that train.json, and with it every result, is the
same as on the local backend: what the job reads and nothing around it. Refuses to know the engine and its library.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launcher.backends import confinement
from launcher.backends.inputs import Input, local_inputs, looks_secret, named_paths
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BackendError
from trainer.run.run_folder import LOG_FILE, TRAIN_FILE
from trainer.run.spec import NodeJob

RUN_LABEL = "dolphin.run"
SECRETS_NAME = ".secrets.json"
"""In the run folder, for the moment between the start of the container and the trainer's first line."""
THE_IMAGES_OWN = ("/bin", "/dev", "/etc", "/lib", "/lib64", "/opt/dolphin", "/proc", "/sbin", "/sys", "/usr")
"""Where a mount would hide the image's own files. /usr/local/share and the like are in it too."""
_MAX_FILES = 4096
"""Mounts of single files in one container: an engine takes about a millisecond for each."""


@dataclass(frozen=True, slots=True)
class Mounts:
    """Folders and files of this machine that the container sees under the same names."""

    read_only: tuple[tuple[str, str], ...]
    """Path in the container, and where its bytes are on this machine: another place where the path is a link."""
    read_write: tuple[str, ...]


def mounts_of(job: JobSpec, train: NodeJob) -> Mounts:
    """Data, models and templates read-only; the run folder, the cache and a checkpoint folder read-write.

    A folder that the job names is one mount where all of it may be seen; otherwise, and of a glob, file by file.
    Raises BackendError for a path that cannot be mounted, BadUsage for what must not be read (`launcher.backends.inputs`).
    """
    writable = [train.run_dir, train.cache_dir]
    if train.spec.checkpoint.store is not None and "://" not in train.spec.checkpoint.store:
        writable.append(train.spec.checkpoint.store)
    for _, path in named_paths(job):
        _check_mountable(path)  # before a look at what may be the whole system
    readable: dict[str, str] = {}
    for one in local_inputs(job):
        readable |= {one.root: one.root} if _is_plain(one) else {file.path: file.source for file in one.files}
    for path in (*readable, *writable):
        _check_mountable(path)
    outermost = [path for path in _outermost(readable) if path not in writable]
    if len(outermost) > _MAX_FILES:
        raise BackendError(
            f"{outermost[0]} and others: {len(outermost)} single files are too many to mount; put them into a folder of "
            "their own, without links, and name the folder"
        )
    return Mounts(tuple((path, readable[path]) for path in outermost), _outermost(writable))


def _is_plain(one: Input) -> bool:
    """Whether it is a folder in which nothing is a link and nothing looks like a secret."""
    if os.path.islink(one.path) or not os.path.isdir(one.path):
        return False
    for folder, children, files in os.walk(one.path):
        for name in (*children, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path) or looks_secret(os.path.relpath(path, one.path)):
                return False
    return True


def needs_network(job: JobSpec) -> bool:
    """Whether the run reaches for anything that is not on this machine: a hub, a bucket, a tracker, a hook."""
    model, track = job.model, job.track
    names = [model.base, model.tokenizer, job.checkpoint.store, *(source.path for _, source in job.data.inputs)]
    if any(name is not None and not name.startswith("/") for name in names):
        return True
    if job.notify or (track.wandb is not None and track.wandb.mode == "online"):
        return True
    return track.mlflow is not None and not track.mlflow.tracking_uri.startswith("file:")


def environment_of(
    job_environment: Mapping[str, str], train: NodeJob, *, run_marker: str, has_secrets: bool, has_network: bool
) -> dict[str, str]:
    """The container's environment; nothing in it is secret."""
    environment = {
        **confinement.HOME,
        "HF_HOME": f"{train.cache_dir}/huggingface",
        run_marker: train.run_id,
        "DOLPHIN_LOG": f"{train.run_dir}/{LOG_FILE}",
    }
    if not has_network:
        # Only the loopback interface is there, and a container without a network cannot resolve its own name.
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    if has_secrets:
        environment["DOLPHIN_SECRETS_FILE"] = f"{train.run_dir}/{SECRETS_NAME}"
    return environment | dict(job_environment)


def command_of(train: NodeJob) -> list[str]:
    """The image's own entry, with everything it says in the run's log.txt, where it outlives container and engine."""
    wrapper = 'exec "$@" >>"$DOLPHIN_LOG" 2>&1'
    return ["/bin/sh", "-c", wrapper, "sh", "python", "-m", "trainer.supervise", f"{train.run_dir}/{TRAIN_FILE}"]


def gpu_ids(num_wanted: int, visible: str | None) -> list[str]:
    """Which GPUs of this machine the run gets, as the engine names them: the first that CUDA_VISIBLE_DEVICES allows."""
    if visible is None:
        return [str(index) for index in range(num_wanted)]
    return [name.strip() for name in visible.split(",")][:num_wanted]


def _check_mountable(path: str) -> None:
    if path == "/" or any(path == own or path.startswith(own + "/") for own in THE_IMAGES_OWN):
        raise BackendError(f"{path}: would hide the image's own files; move it elsewhere, for example under your home")


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Without repetitions and without what lies within another one."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(outer.rstrip("/") + "/") for outer in kept):
            kept.append(path)
    return tuple(kept)
