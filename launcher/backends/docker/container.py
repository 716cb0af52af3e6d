"""What the container of a run is made of: its mounts, environment, network and GPUs, as values. Pure but for looking at paths.

Every folder is mounted under the name that it has on this machine, so that train.json, and with it every result, is
the same as on the local backend. Refuses to know the engine and its library.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BackendError
from trainer.run.run_folder import LOG_FILE, TRAIN_FILE
from trainer.run.spec import NodeJob, UnfrozenSpec

RUN_LABEL = "dolphin.run"
SECRETS_NAME = ".secrets.json"
"""In the run folder, for the moment between the start of the container and the trainer's first line."""
THE_IMAGES_OWN = ("/bin", "/dev", "/etc", "/lib", "/lib64", "/opt/dolphin", "/proc", "/sbin", "/sys", "/usr")
"""Where a mount would hide the image's own files. /usr/local/share and the like are in it too."""
_MAX_LINKS = 10_000


@dataclass(frozen=True, slots=True)
class Mounts:
    """Folders and files of this machine that the container sees under the same names."""

    read_only: tuple[str, ...]
    read_write: tuple[str, ...]


def mounts_of(job: JobSpec, train: NodeJob) -> Mounts:
    """Data, models and templates read-only; the run folder, the cache and a checkpoint folder read-write.

    Raises BackendError for a path that cannot be mounted.
    """
    writable = [train.run_dir, train.cache_dir]
    if train.spec.checkpoint.store is not None and "://" not in train.spec.checkpoint.store:
        writable.append(train.spec.checkpoint.store)
    inputs = _local_inputs(job)
    for path in (*inputs, *writable):
        _check_mountable(path)  # before all of `/usr` is searched
    readable = [path for name in inputs for path in _with_link_targets(name)]
    for path in readable:
        _check_mountable(path)
    outermost = _outermost(readable)
    return Mounts(tuple(path for path in outermost if path not in writable), _outermost(writable))


def needs_network(job: JobSpec) -> bool:
    """Whether the run reaches for anything that is not on this machine: a hub, a bucket, a tracker."""
    model, track = job.model, job.track
    names = [model.base, model.tokenizer, job.checkpoint.store, *(source.path for source in job.data.sources)]
    if any(name is not None and not name.startswith("/") for name in names):
        return True
    if track.wandb is not None and track.wandb.mode == "online":
        return True
    return track.mlflow is not None and not track.mlflow.tracking_uri.startswith("file:")


def environment_of(
    job_environment: Mapping[str, str], train: NodeJob, *, run_marker: str, has_secrets: bool, has_network: bool
) -> dict[str, str]:
    """The container's environment; nothing in it is secret."""
    environment = {
        # The user of the run has no entry in the image's /etc/passwd.
        "HOME": "/tmp",
        "USER": "dolphin",
        "LOGNAME": "dolphin",
        "HF_HOME": f"{train.cache_dir}/huggingface",
        "TRITON_CACHE_DIR": "/tmp/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
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


def _local_inputs(job: JobSpec) -> list[str]:
    """Absolute paths of everything that the job reads on this machine."""
    names: list[str | None] = [job.model.base, job.model.tokenizer, job.model.chat_template]
    if isinstance(job.train.unfrozen, UnfrozenSpec):
        names.append(job.train.unfrozen.spectrum.snr)
    for source in job.data.sources:
        names.append(_part_before_magic(source.path))
    return [name for name in names if name is not None and name.startswith("/") and os.path.exists(name)]


def _part_before_magic(path: str) -> str:
    """`/data` of `/data/*/part-*.jsonl`; the path itself where it is no glob (or a file is really called so)."""
    if "://" in path or not glob.has_magic(path) or os.path.exists(path):
        return path
    fixed = Path("/")
    for part in Path(path).parts[1:]:
        if glob.has_magic(part):
            break
        fixed /= part
    return str(fixed)


def _with_link_targets(name: str) -> Iterable[str]:
    """The path, and the folders that links inside it point into (a hub's snapshot is links into its blobs)."""
    yield name
    if not os.path.isdir(name):
        return
    num_links = 0
    inside = os.path.realpath(name)
    folders = set()
    for folder, children, files in os.walk(name):
        for child in (*children, *files):
            path = os.path.join(folder, child)
            if not os.path.islink(path):
                continue
            num_links += 1
            if num_links > _MAX_LINKS:
                raise BackendError(
                    f"{name}: holds more than {_MAX_LINKS} links, which cannot all be mounted; copy the files"
                )
            target = os.path.normpath(os.path.join(folder, os.readlink(path)))
            if not target.startswith((name + "/", inside + "/")) and os.path.exists(target):
                folders.add(os.path.dirname(target))
    yield from sorted(folders)


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
