"""DockerBackend: a run as a container on this machine's engine, with the same folders and the same results as a local run.

Owns the life of the container: start, state, stop, removal. The run folder is the ledger's own, so log, events and
outcome are read as a local run's and outlive container and engine. Refuses to know how training works.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.backends import confinement
from launcher.backends.base import Abilities, DownReport, Handle, Submission
from launcher.backends.docker import container as parts
from launcher.backends.docker import engine, image
from launcher.backends.home import processes
from launcher.backends.home.machine import memory_bytes
from launcher.backends.home.run_folder import HomeBackend, Look, as_told, last_words
from launcher.runs import ledger
from launcher.runs.errors import BackendError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState, state_of_exit_code
from launcher.units import MIB
from trainer.run import secret_file

if TYPE_CHECKING:
    from launcher.jobfile.spec import JobSpec
    from trainer.run.spec import NodeJob

KILLED_EXIT_CODE = 137
_SECRETS_TIMEOUT_S = 120
"""A cold start of Python in the container takes seconds; a busy machine, more."""
_STOP_MARGIN_S = 60


class DockerBackend(HomeBackend):
    """Satisfies `launcher.backends.base.Backend`."""

    name = "docker"
    abilities = Abilities()
    poll_s = 1.0

    def preflight(self, job: JobSpec, train: NodeJob, options: Mapping[str, Any]) -> list[str]:
        parts.mounts_of(job, train)
        client = engine.connect()
        if train.device == "cuda" and not engine.has_gpu_runtime(client):
            raise BackendError(
                "--on docker: the engine has no GPU runtime; install nvidia-container-toolkit and restart docker, or set "
                "CUDA_VISIBLE_DEVICES= to use the CPU"
            )
        return []

    def submit(self, submission: Submission) -> Handle:
        record, train = submission.record, submission.train
        mounts = parts.mounts_of(submission.job, train)
        client = engine.connect()
        earlier = _container(client, record.run_id)
        if earlier is not None:
            if _is_active(earlier):
                raise BackendError(f"{record.run_id}: its container still runs; `dolphin down {record.run_id}` first")
            _remove(earlier)
        name = image.ensure(
            client, submission.job.resources.image, train.device, record.folder / "image.log", submission.tell
        )
        files = record.files
        files.outcome.unlink(missing_ok=True)  # of an earlier attempt: it must not speak for this one
        for folder in mounts.read_write:
            Path(folder).mkdir(parents=True, exist_ok=True)  # else there is nothing to mount
        secrets = record.folder / parts.SECRETS_NAME
        secrets.unlink(missing_ok=True)
        options = engine.security_options(client)
        try:
            if submission.secrets:
                secret_file.write(secrets, dict(submission.secrets))
            with engine.explained(f"{record.run_id}: starting its container"):
                container = client.containers.create(name, **self._settings(submission, mounts, options))
            try:
                with engine.explained(f"{record.run_id}: starting its container"):
                    container.start()
                _wait_until_taken(container, secrets)
            except BaseException:
                _remove(container, force=True)
                raise
        finally:
            secrets.unlink(missing_ok=True)
        return {"container": container.id, "name": container.name, "image": name, "host": platform.node()}

    def _settings(
        self, submission: Submission, mounts: parts.Mounts, security_options: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Arguments of `containers.create`. Bind mounts, so that a folder that is not there is an error, not root's."""
        from docker.types import DeviceRequest, Mount, Ulimit

        train = submission.train
        network = os.environ.get(image.NETWORK) or ("bridge" if parts.needs_network(submission.job) else "none")
        settings: dict[str, Any] = {
            "name": f"dolphin-{train.run_id}",
            "labels": {parts.RUN_LABEL: train.run_id},
            "entrypoint": parts.command_of(train),
            "command": [],
            **confinement.user_of(security_options, f"{os.getuid()}:{os.getgid()}"),
            "working_dir": train.run_dir,
            "environment": parts.environment_of(
                submission.job.env,
                train,
                run_marker=processes.RUN_MARKER,
                has_secrets=bool(submission.secrets),
                has_network=network != "none",
            ),
            "mounts": [Mount(path, source, type="bind", read_only=True) for path, source in mounts.read_only]
            + [Mount(path, path, type="bind") for path in mounts.read_write],
            "network_mode": network,
            # The ranks meet at their host's name, which nothing resolves where there is no network.
            "hostname": "localhost" if network == "none" else None,
            # The ranks of a node and the data's workers exchange through shared memory.
            "shm_size": max(64 * MIB, memory_bytes() // 2),
            **confinement.CONFINEMENT,
            "detach": True,
        }
        if train.device == "cuda":
            ids = parts.gpu_ids(train.nproc, os.environ.get("CUDA_VISIBLE_DEVICES"))
            settings["ulimits"] = [
                Ulimit(name=name, soft=limit, hard=limit) for name, limit in confinement.GPU_LIMITS.items()
            ]
            settings["device_requests"] = [DeviceRequest(device_ids=ids, capabilities=[["gpu"]])]
        return settings

    def find(self, run_id: str) -> Handle | None:
        container = _container(engine.connect(), run_id)
        if container is None or not _is_active(container):
            return None
        return {"container": container.id, "name": container.name, "host": platform.node()}

    def down(self, record: RunRecord, grace_s: float) -> DownReport:
        client = engine.connect(timeout_s=grace_s + _STOP_MARGIN_S)
        container = _container(client, record.run_id)
        with contextlib.suppress(OSError):  # a read-only folder must not keep the container running
            (record.folder / parts.SECRETS_NAME).unlink(missing_ok=True)
        if container is None:
            return DownReport(True, detail="nothing of it was running", price_usd=0.0)
        was_active, was_killed = _is_active(container), False
        if was_active:
            with engine.explained(f"{record.run_id}: stopping its container"):
                if container.status == "paused":
                    container.unpause()
                if grace_s > 0:
                    container.stop(timeout=max(1, round(grace_s)))
                else:
                    _kill(container)
                container.reload()
            was_killed = container.attrs["State"]["ExitCode"] == KILLED_EXIT_CODE
        _keep_ending(record, container)
        _remove(container, force=True)
        rest = _container(client, record.run_id)
        if rest is not None:
            return DownReport(
                False, (f"container {rest.name}: docker rm -f {rest.id[:12]}",), "docker cannot remove it", was_killed
            )
        if not was_active:
            return DownReport(True, detail="nothing of it was running; its container is removed", price_usd=0.0)
        how = "killed" if was_killed else "stopped by itself"
        return DownReport(True, detail=f"{how}; its container is removed", was_killed=was_killed, price_usd=0.0)

    def look(self, record: RunRecord) -> Look:
        outcome = record.files.read_outcome()
        try:
            container = _container(engine.connect(), record.run_id)
        except BackendError:
            if outcome is None:
                raise
            state, reason, exit_code = as_told(outcome)
            return state, f"{reason or 'ended'} (the Docker engine does not answer now)", exit_code
        if container is not None and _is_active(container):
            paused = "; `docker unpause` lets it go on" if container.status == "paused" else ""
            return RunState.RUNNING, f"container {container.name}{paused}", None
        if record.handle is None and ledger.is_locked(record):
            return RunState.CREATED, "being started", None
        if container is None or container.status == "created":
            if outcome is not None:
                return as_told(outcome)
            if record.submissions == 0 or not record.files.events.exists():
                return RunState.LOST, "it was never started; `dolphin resume` starts it", None
            return RunState.LOST, "its container is gone without an outcome; `dolphin resume` goes on", None
        return _ended(record, container.attrs["State"], outcome)


def _ended(record: RunRecord, ended: dict[str, Any], outcome: dict[str, Any] | None) -> Look:
    """State of a container that is over: its exit code is the run's, the outcome says why."""
    exit_code = int(ended["ExitCode"])
    if outcome is not None:
        return state_of_exit_code(exit_code), str(outcome.get("reason") or ""), exit_code
    if ended.get("OOMKilled"):
        return (
            RunState.FAILED,
            "the container ran out of memory; give docker more, or lower train.micro_batch",
            exit_code,
        )
    if exit_code >= 128:
        return (
            RunState.LOST,
            f"its container was killed (exit code {exit_code}) or the engine stopped; `dolphin resume` goes on",
            None,
        )
    return (
        state_of_exit_code(exit_code),
        ended.get("Error") or last_words(record) or f"exit code {exit_code}",
        exit_code,
    )


def _container(client: Any, run_id: str) -> Any:
    """The run's container in whatever state, found by its label; None where there is none."""
    with engine.explained(f"{run_id}: looking for its container"):
        found = client.containers.list(all=True, filters={"label": f"{parts.RUN_LABEL}={run_id}"}, ignore_removed=True)
    return found[0] if found else None


def _is_active(container: Any) -> bool:
    return container.status in ("running", "restarting", "paused", "removing")


def _remove(container: Any, *, force: bool = False) -> None:
    """With its anonymous volumes; gone already is fine."""
    import docker.errors

    with engine.explained(f"removing the container {container.name}"):
        try:
            container.remove(v=True, force=force)
        except docker.errors.NotFound:
            return


def _kill(container: Any) -> None:
    """SIGKILL, and wait; one that ended by itself in the meantime is fine."""
    import docker.errors

    try:
        container.kill()
    except docker.errors.APIError as error:
        if error.status_code != 409:  # 409: it is not running
            raise
    container.wait()


def _keep_ending(record: RunRecord, container: Any) -> None:
    """What the engine itself says of a container that could not write its log, before it is removed."""
    error = container.attrs["State"].get("Error")
    if error:
        with contextlib.suppress(OSError), open(record.files.log, "a", encoding="utf-8") as log:
            log.write(f"docker: {error}\n")


def _wait_until_taken(container: Any, secrets: Path) -> None:
    """Until the trainer has read its secrets and removed the file, or has ended (its log says why)."""
    until = time.monotonic() + _SECRETS_TIMEOUT_S
    while secrets.exists():
        with engine.explained(f"starting {container.name}"):
            container.reload()
        if not _is_active(container):
            return
        if time.monotonic() > until:
            raise BackendError(
                f"{container.name}: the image did not take the secrets within {_SECRETS_TIMEOUT_S} s; is it built from dolphin's Dockerfile?"
            )
        time.sleep(0.1)
