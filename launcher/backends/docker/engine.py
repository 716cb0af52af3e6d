"""The Docker engine of this machine: the connection to it, and its errors as one line that says what to do.

Owns the use of the Docker SDK for Python together with `backend` and `image`. Refuses to know runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from launcher.backends.docker.endpoint import SOCKET, USUAL, endpoint, local_socket
from launcher.runs.errors import BackendError

ANSWER_TIMEOUT_S = 60
_MEANINGS = (
    ("no space left on device", "the engine's disk is full: `docker system prune` frees some, `docker system df` shows what uses it"),
    ("could not select device driver", "the engine has no GPU runtime: install nvidia-container-toolkit and restart docker, or set CUDA_VISIBLE_DEVICES= to use the CPU"),
    ("nvidia-container", "the engine's GPU runtime does not work: does `docker run --rm --gpus all IMAGE nvidia-smi`? Reinstall nvidia-container-toolkit"),
    ("is already in use by container", "the name is taken by another container: `docker rm` that one, or launch again"),
    ("bind source path does not exist", "a folder went away while the run was started; launch again"),
    ("permission denied while trying to connect", "you may not use the engine: add yourself to the group `docker` and log in again"),
    ("pull access denied", "there is no such image, or it needs `docker login`: correct resources.image"),
    ("manifest unknown", "there is no such tag: correct resources.image"),
    ("executable file not found", "the image lacks python or a shell: take one built from dolphin's Dockerfile"),
)  # fmt: skip
"""What the engine says (in part, lower case), and what it means for the user."""


def connect(timeout_s: float = ANSWER_TIMEOUT_S):  # type: ignore[no-untyped-def]  # docker.DockerClient, imported here alone
    """A client of this machine's engine. Raises BackendError where the SDK, the engine or the permission is missing."""
    try:
        import docker
    except ImportError:
        raise BackendError(
            "--on docker: the Docker SDK is not installed; pip install 'dolphin-launcher[docker]'"
        ) from None
    path = local_socket()
    try:
        client = docker.DockerClient(base_url=f"{SOCKET}{path}", timeout=timeout_s)
        client.ping()
    except Exception as error:  # the SDK wraps some errors of sockets and lets others through
        raise _unreachable(path, endpoint().origin, error) from None
    return client


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """The SDK's errors inside become a BackendError: what was being done, why it failed, what to do."""
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.BuildError as error:
        raise BackendError(explain(doing, error.msg)) from None
    except docker.errors.APIError as error:
        raise BackendError(explain(doing, error.explanation or str(error))) from None
    except requests.exceptions.Timeout:
        raise BackendError(f"{doing}: the Docker engine does not answer; `docker info` tells more") from None
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise BackendError(f"{doing}: {_last_line(str(error))}; is the Docker engine running?") from None


def explain(doing: str, message: str) -> str:
    """`doing`: what the engine said, in a line; and what to do, where that is known."""
    said = _last_line(message)
    for part, meaning in _MEANINGS:
        if part in message.lower():
            return f"{doing}: {meaning} (docker: {said[:200]})"
    return f"{doing}: docker: {said[:400]}"


def security_options(client) -> list[str]:  # type: ignore[no-untyped-def]
    """What the engine says of its isolation, as `rootless` or `userns`."""
    with explained("asking the engine for its security options"):
        stated = client.info().get("SecurityOptions") or []
    return [str(option).partition(",")[0].removeprefix("name=") for option in stated]


def has_gpu_runtime(client) -> bool:  # type: ignore[no-untyped-def]
    """Whether containers can be given NVIDIA GPUs."""
    with explained("asking the engine for its runtimes"):
        info = client.info()
    devices = [str(device) for device in info.get("DiscoveredDevices") or []]
    return "nvidia" in (info.get("Runtimes") or {}) or any("nvidia" in device for device in devices)


def _unreachable(path: str, origin: str, error: Exception) -> BackendError:
    text = str(error)
    if "Permission denied" in text:
        advice = "add yourself to the group `docker` and log in again"
    elif "No such file" in text and origin != USUAL:
        advice = f"{origin} names it: start that engine, or name another"
    elif "No such file" in text:
        advice = "install Docker Engine (Debian: apt-get install docker.io) and start it"
    else:
        advice = "start it (systemctl start docker), or see why with `docker info`"
    return BackendError(f"--on docker: no Docker engine answers at {path} ({_last_line(text)[:160]}); {advice}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
