"""The image that a run is started from: the one that the job names, the release's, or one built from the checkout.

Owns the tag of the own image (version, variant and a hash of everything that goes into it, so that another trainer is
another image) and its build. Refuses to know runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tarfile
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Literal

from launcher.backends.docker.engine import explain, explained
from launcher.backends.release import image_of_release
from launcher.runs.errors import BackendError, BadUsage

ROOT = Path(__file__).parents[3]
REPOSITORY = "dolphin"
BUILD_ARGS = "DOLPHIN_BUILD_ARGS"
"""Environment variable: build arguments as NAME=VALUE, separated by spaces."""
NETWORK = "DOLPHIN_DOCKER_NETWORK"
"""Environment variable: the docker network of builds, and of runs where it is set."""
_PARTS = ("Dockerfile", "constraints.txt", "pyproject.toml", "trainer", "wheels")
"""What .dockerignore lets through."""


def ensure(  # type: ignore[no-untyped-def]
    client, wanted: str | None, device: Literal["cuda", "cpu"], log: Path, tell: Callable[[str], None]
) -> str:
    """The name of an image that is there now: the one to pull (`wanted`, else the release's), or one built here.

    The build's output goes to `log`. Raises BackendError.
    """
    wanted = to_pull(wanted, device)
    if wanted is not None:
        if not is_there(client, wanted):
            tell(f"pulling {wanted}")
            with explained(f"pulling {wanted}"):
                client.images.pull(*_repository_and_tag(wanted))
        return wanted
    arguments = build_arguments(device)
    name = own_tag(ROOT, arguments)
    if not is_there(client, name):
        tell(f"building {name} (the first time takes minutes; {log})")
        build(client, ROOT, name, arguments, log, tell)
    return name


def to_pull(stated: str | None, device: Literal["cuda", "cpu"]) -> str | None:
    """The job's image, else this release's; None where one is built: in a checkout, and where build arguments are given."""
    return stated or (None if os.environ.get(BUILD_ARGS) else image_of_release(device))


def is_there(client, name: str) -> bool:  # type: ignore[no-untyped-def]
    import docker.errors

    with explained(f"looking for the image {name}"):
        try:
            client.images.get(name)
        except docker.errors.ImageNotFound:
            return False
    return True


def build_arguments(device: str) -> dict[str, str]:
    """VARIANT for this device, and what DOLPHIN_BUILD_ARGS says."""
    arguments = {"VARIANT": "cuda" if device == "cuda" else "cpu"}
    for word in shlex.split(os.environ.get(BUILD_ARGS, "")):
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise BadUsage(f"{BUILD_ARGS}: {word!r} is not NAME=VALUE; write for example BASE_IMAGE=debian:bookworm")
        arguments[name] = value
    if arguments["VARIANT"] == "cpu":
        arguments.setdefault("BASE_IMAGE", "python:3.11-slim-bookworm")
    return arguments


def own_tag(root: Path, arguments: dict[str, str]) -> str:
    """dolphin:VERSION-VARIANT-HASH of everything that decides what is in the image. BackendError without a checkout."""
    digest = hashlib.sha256(repr(sorted(arguments.items())).encode())
    for path in context_files(root):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".whl":  # named by version; hundreds of megabytes need no reading
            digest.update(f"{name} {path.stat().st_size}\n".encode())
        else:
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"{REPOSITORY}:{version('dolphin-launcher')}-{arguments['VARIANT']}-{digest.hexdigest()[:12]}"


def context_files(root: Path) -> list[Path]:
    """The files of the build context, sorted."""
    if not (root / "Dockerfile").is_file():
        raise BackendError(
            "--on docker: this installation brings no Dockerfile; name an image with dolphin in it (resources.image), or launch from a checkout"
        )
    found = []
    for part in _PARTS:
        path = root / part
        inside = path.rglob("*") if path.is_dir() else [path]
        found += [child for child in inside if child.is_file() and child.suffix != ".pyc"]
    return sorted(found)


def build(  # type: ignore[no-untyped-def]
    client, root: Path, name: str, arguments: dict[str, str], log: Path, tell: Callable[[str], None]
) -> None:
    """Build the own image; its output goes to `log`. Raises BackendError with the last line that says why."""
    settled = {"VERSION": version("dolphin-launcher"), "REVISION": _revision(root)} | arguments
    with tempfile.TemporaryFile() as context, open(log, "w", encoding="utf-8") as out:
        _pack(root, context)
        with explained(f"building {name}"):
            lines = client.api.build(
                fileobj=context,
                custom_context=True,
                tag=name,
                rm=True,
                forcerm=True,
                decode=True,
                buildargs=settled,
                network_mode=os.environ.get(NETWORK) or None,
                timeout=None,
            )
            said = ""
            for line in lines:
                text = line.get("stream") or line.get("status") or ""
                out.write(text)
                out.flush()
                if text.startswith("Step "):
                    if " : RUN " in text:  # the steps that take time
                        tell(f"  {' '.join(text.split())[:100]}")
                elif text.strip():
                    said = text.strip()
                if "error" in line:
                    out.write(line["error"] + "\n")
                    raise BackendError(
                        f"{explain(f'building {name}', _cause(line['error'], said))}; all of it is in {log}"
                    )
    if not is_there(client, name):
        raise BackendError(f"building {name}: ended without an image; its output is in {log}")


def _cause(error: str, said: str) -> str:
    """Why a step failed: its last line of output, and which step it was."""
    step = " ".join(error.split())
    return f"{said.splitlines()[-1]} ({step[:100]})" if said else step


def _pack(root: Path, context: IO[bytes]) -> None:
    """The build context as a tar file whose bytes depend on content alone."""
    with tarfile.open(fileobj=context, mode="w", dereference=True) as archive:
        for path in context_files(root):
            entry = archive.gettarinfo(path, path.relative_to(root).as_posix())
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o644
            with open(path, "rb") as handle:
                archive.addfile(entry, handle)
    context.seek(0)


def _revision(root: Path) -> str:
    """The commit of the checkout, for the image's label; empty where git does not say."""
    import subprocess

    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


def _repository_and_tag(name: str) -> tuple[str, str | None]:
    """As the SDK takes them: without a tag it would pull every one."""
    if "@" in name:
        return name, None
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "latest")
