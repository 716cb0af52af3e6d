"""Which engine `docker` itself would talk to: the one answer for launches and for doctor. Needs no SDK, asks no engine.

The client's own order: DOCKER_HOST, DOCKER_CONTEXT, the current context of its configuration, the usual socket.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from launcher.backends.home.machine import local_gpus
from launcher.runs.errors import BackendError

DEFAULT_HOST = "unix:///var/run/docker.sock"
SOCKET = "unix://"
USUAL = "the usual place"
"""The origin where nothing was said."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    """As DOCKER_HOST has it: unix:///path, tcp://..., ssh://..."""
    origin: str
    """What said so, for messages: `DOCKER_HOST`, `docker context mine`, or that it is the default."""

    @property
    def socket(self) -> str | None:
        """The socket of an engine of this machine; None for one that is reached in another way."""
        return self.host.removeprefix(SOCKET) if self.host.startswith(SOCKET) else None


def endpoint() -> Endpoint:
    """Where the engine is. Raises BackendError for a context that is named and not there."""
    host = os.environ.get("DOCKER_HOST")
    if host:
        return Endpoint(host, "DOCKER_HOST")
    name, origin = os.environ.get("DOCKER_CONTEXT"), "DOCKER_CONTEXT"
    if not name:
        name, origin = _current_context(), "the current docker context"
    if not name or name == "default":
        return Endpoint(DEFAULT_HOST, USUAL)
    found = _host_of(name)
    if found is None:
        raise BackendError(
            f"--on docker: {origin} is {name!r}, and there is no such context in {_folder()}; `docker context ls` lists "
            "them, `docker context use default` goes back"
        )
    return Endpoint(found, f"docker context {name}")


def local_socket() -> str:
    """The socket of an engine on this machine. BackendError where the client would use an engine elsewhere."""
    at = endpoint()
    if at.socket is None:
        raise BackendError(
            f"--on docker mounts folders of this machine, so it needs an engine on it, and {at.origin} names {at.host}; "
            f"{'unset DOCKER_HOST' if at.origin == 'DOCKER_HOST' else '`docker context use` one of this machine'}"
        )
    return at.socket


def gpus_for_containers() -> list[tuple[str, int | None]]:
    """Name and memory (MiB) of the GPUs that containers of an engine of this machine may have; none where there is no engine.
    Whether the engine has NVIDIA's runtime, a launch asks it."""
    try:
        socket = endpoint().socket
    except BackendError:
        return []
    return local_gpus() if socket is not None and os.path.exists(socket) else []


def _folder() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"))


def _current_context() -> str | None:
    try:
        name = json.loads((_folder() / "config.json").read_bytes()).get("currentContext")
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def _host_of(context: str) -> str | None:
    """From the context's metadata, which the client keeps under the hash of its name."""
    digest = hashlib.sha256(context.encode()).hexdigest()
    try:
        host = json.loads((_folder() / "contexts" / "meta" / digest / "meta.json").read_bytes())["Endpoints"]["docker"][
            "Host"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return host if isinstance(host, str) and host else None
