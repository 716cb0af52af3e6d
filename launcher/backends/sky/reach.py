"""Reaching a run's folder in its store from home: over ssh to a Slurm cluster's login node, or in a bucket.

Owns reading, asking and copying on the other side; refuses to know runs' states and SkyPilot's API. SkyPilot's own ssh
configuration for Slurm (~/.slurm/config) names the login nodes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from launcher.backends.sky.bucket_copy import copy_prefix
from launcher.backends.sky.store_access import open_at_home
from launcher.runs.copying import arriving
from launcher.runs.errors import BackendError
from trainer.run.exits import BadInput
from trainer.run.stores.base import NotInStore, StoreError

_TIMEOUT_S = 60
SLURM_CONFIG = "~/.slurm/config"


class Reach(Protocol):
    """Files of the store's side, by absolute path there."""

    is_live: bool
    """Whether what is read is what the node wrote a moment ago; a bucket is up to half a minute behind."""

    def read(self, path: str, offset: int = 0) -> bytes | None:
        """None where it does not exist. BackendError where the other side cannot be asked."""

    def touch(self, path: str) -> None:
        """Make an empty file; BackendError where that fails."""

    def copy(self, path: str, target: Path) -> Path:
        """The folder as `target`, whole or not at all (launcher.runs.copying)."""


def reach(infra: str | None) -> Reach | None:
    """How to reach a folder store of this infra; None where there is no way."""
    parts = (infra or "").split("/")
    if parts[0].lower() == "slurm" and len(parts) > 1 and os.path.exists(os.path.expanduser(SLURM_CONFIG)):
        return OverSsh(parts[1])
    return None


class OverSsh:
    """The store is a folder that a Slurm cluster's login node sees."""

    is_live = True

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster

    def read(self, path: str, offset: int = 0) -> bytes | None:
        done = self._run(f"test -f {_quoted(path)} && tail -c +{offset + 1} {_quoted(path)} || exit 3")
        if done.returncode == 3:
            return None
        self._check(done, path)
        return done.stdout

    def touch(self, path: str) -> None:
        self._check(self._run(f"touch {_quoted(path)}"), path)

    def copy(self, path: str, target: Path) -> Path:
        with arriving(target, f"{path} on {self._cluster}") as partial:
            partial.mkdir()
            command = self._command(f"tar -C {_quoted(path)} -cf - .")
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ssh:
                assert ssh.stdout is not None
                assert ssh.stderr is not None
                problem = ""
                try:
                    with tarfile.open(fileobj=ssh.stdout, mode="r|") as archive:
                        archive.extractall(partial, filter="data")
                except (tarfile.TarError, EOFError) as error:
                    problem = str(error)
                said = _said(ssh.stderr.read())
            if ssh.returncode or problem:
                raise BackendError(f"{path} on {self._cluster}: cannot be copied: {said or problem}")
        return target.absolute()

    def _command(self, command: str) -> list[str]:
        config = os.path.expanduser(SLURM_CONFIG)
        return ["ssh", "-F", config, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new", "-o",
                "ConnectTimeout=15", "-o", "LogLevel=ERROR", self._cluster, command]  # fmt: skip

    def _run(self, command: str) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(self._command(command), capture_output=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"ssh to {self._cluster}: {error}") from None

    def _check(self, done: subprocess.CompletedProcess[bytes], path: str) -> None:
        if done.returncode:
            said = _said(done.stderr)
            raise BackendError(f"{path} on {self._cluster}: {said or f'ssh failed with {done.returncode}'}")


class InBucket:
    """The store is a bucket: `node.bucket` keeps the run folder's records below run/ there, and hands on what is asked."""

    is_live = False

    def __init__(self, url: str, run_dir: str, environment: Mapping[str, str]) -> None:
        self.url, self._run_dir, self._environment = url, run_dir, environment
        self.store = open_at_home(url, environment)

    def read(self, path: str, offset: int = 0) -> bytes | None:
        try:
            return self.store.get(self._name(path))[offset:]
        except NotInStore:
            return None
        except (StoreError, BadInput) as error:
            raise BackendError(str(error)) from None

    def touch(self, path: str) -> None:
        try:
            self.store.put(self._name(path), b"")
        except (StoreError, BadInput) as error:
            raise BackendError(str(error)) from None

    def copy(self, path: str, target: Path) -> Path:
        return copy_prefix(f"{self.url}/{path.removeprefix(self._run_dir + '/')}", target, self._environment)

    def _name(self, path: str) -> str:
        return f"run/{path.removeprefix(self._run_dir + '/')}"


def _said(stderr: bytes) -> str:
    """What ssh and the other side wrote, as one line; a changed host key is 20 lines of ssh's, said here with the way out."""
    text = stderr.decode(errors="replace")
    if changed := re.search(r"Host key for (\S+) has changed", text):
        return (
            f"the host key of {changed[1]} is not the one in known_hosts; where the machine was installed anew: "
            f"ssh-keygen -R {shlex.quote(changed[1])}, otherwise ask who runs it"
        )
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _quoted(path: str) -> str:
    """For the shell there; a leading ~ stays the home of there."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)
