"""A real container for doctor: started as a run's is, on a folder of this machine, with a program that writes one file there.

Owns the program (a few machine instructions, so that no image must be there and nothing is downloaded) and what its end says.
Leaves nothing behind. Refuses to know runs.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.backends import confinement
from launcher.backends.docker import engine
from launcher.runs.errors import BackendError

IMAGE = "dolphin-doctor:trial"
WRITTEN = "written"
_MACHINES = ("x86_64", "amd64")
_TIMEOUT_S = 60
_ADDRESS = 0x400000


def is_possible(client: Any) -> bool:
    """Whether there is a program for the engine's machine."""
    with engine.explained("asking the engine for its machine"):
        return client.info().get("Architecture") in _MACHINES


def problem_of(client: Any, folder: Path) -> str | None:
    """Why a run's container could not work with files of `folder`; None where one did. Only where it `is_possible`."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".dolphin-doctor-") as shared, _image(client):
            return _problem_in(client, Path(shared))
    except OSError as error:
        return f"{folder}: cannot be written ({error.strerror})"
    except BackendError as error:
        return str(error)


def program() -> bytes:
    """An ELF executable for x86-64 Linux: open(WRITTEN, O_CREAT | O_WRONLY, 0644) here; exit(1 where that failed, else 0)."""
    name = WRITTEN.encode() + b"\0"
    before_name = b"\xbe\x41\0\0\0" + b"\xba\xa4\x01\0\0" + b"\x0f\x05"  # mov esi, flags; mov edx, mode; syscall
    then_exit = b"\x48\x89\xc7" + b"\x48\xc1\xef\x3f" + b"\xb8\x3c\0\0\0" + b"\x0f\x05"  # rdi = rax >> 63; exit
    distance = struct.pack("<i", len(before_name) + len(then_exit))
    code = (
        b"\xb8\x02\0\0\0" + b"\x48\x8d\x3d" + distance + before_name + then_exit + name
    )  # mov eax, open; lea rdi, name
    start = 64 + 56
    size_bytes = start + len(code)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _ADDRESS + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size_bytes, size_bytes, 0x1000)
    return header + segment + code


def _problem_in(client: Any, shared: Path) -> str | None:
    from docker.types import Mount

    user = confinement.user_of(engine.security_options(client), f"{os.getuid()}:{os.getgid()}")
    doing = "starting a container for a trial"
    with engine.explained(doing):
        trial = client.containers.create(
            IMAGE, entrypoint=["/trial"], command=[], working_dir=str(shared), network_mode="none",
            mounts=[Mount(str(shared), str(shared), type="bind")], **confinement.CONFINEMENT, **user,
        )  # fmt: skip
    try:
        with engine.explained(doing):
            trial.start()
            code = trial.wait(timeout=_TIMEOUT_S)["StatusCode"]
    finally:
        with contextlib.suppress(BackendError), engine.explained("removing the trial's container"):
            trial.remove(force=True)
    if code:
        return f"a container cannot write to folders of this machine ({shared.parent}); does the engine map users, or run elsewhere?"
    try:
        owner = (shared / WRITTEN).stat().st_uid
    except FileNotFoundError:
        return f"what a container writes to {shared.parent} does not arrive here: the engine runs on another machine or in a VM without it"
    if owner != os.getuid():
        return f"what a container writes belongs to user {owner}, not to you ({os.getuid()}): the engine maps users"
    return None


@contextlib.contextmanager
def _image(client: Any) -> Iterator[None]:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        entry = tarfile.TarInfo("trial")
        entry.size, entry.mode = len(program()), 0o755
        archive.addfile(entry, io.BytesIO(program()))
    repository, _, tag = IMAGE.partition(":")
    with engine.explained("making an image for a trial"):
        client.api.import_image_from_data(data.getvalue(), repository=repository, tag=tag)
    try:
        yield
    finally:
        with contextlib.suppress(BackendError), engine.explained("removing the trial's image"):
            client.images.remove(IMAGE, force=True)
