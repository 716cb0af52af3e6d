"""Copying a run's folders home: whole or not at all. Refuses to know runs, and who looks on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from launcher.runs.errors import BackendError, full_disk


@dataclass(slots=True)
class Told:
    """How far a copy is, in bytes."""

    total: int
    arrived: int = 0


_LOOKS_ON: ContextVar[Callable[[Told], None] | None] = ContextVar("looks_on", default=None)


@contextlib.contextmanager
def looked_on(see: Callable[[Told], None]) -> Iterator[None]:
    """Inside, copies that know how much is to come tell how far they are."""
    before = _LOOKS_ON.set(see)
    try:
        yield
    finally:
        _LOOKS_ON.reset(before)


def report(told: Told) -> None:
    see = _LOOKS_ON.get()
    if see is not None:
        see(told)


@contextlib.contextmanager
def going_on(target: Path, what: str) -> Iterator[Path]:
    """As `arriving`, for what can be gone on with: the folder that the body fills is the same for the same `what` and target,
    and stays where the body fails once something is in it. Whoever copies there holds it alone."""
    target = target.absolute()
    _refuse_used(target)
    mark = hashlib.sha256(what.encode()).hexdigest()[:8]
    partial = target.with_name(f".{target.name}.partial-{mark}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        held = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield partial
            os.replace(partial, target)
        finally:
            os.close(held)
            with contextlib.suppress(OSError):
                partial.rmdir()  # of a copy of which nothing arrived
    except BlockingIOError:
        raise BackendError(f"{target}: another command copies {what} there at this moment") from None
    except BackendError as error:
        raise BackendError(f"{error}{_kept(partial)}") from None
    except OSError as error:
        raise BackendError(f"{target}: cannot copy {what} there: {error.strerror or error}{_kept(partial)}") from None


def _kept(partial: Path) -> str:
    if not partial.is_dir():
        return ""
    return f"; what has arrived is kept in {partial}, and the same command goes on from it"


def _refuse_used(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackendError(f"{target}: is not an empty folder; name another one")


@contextlib.contextmanager
def arriving(target: Path, what: str) -> Iterator[Path]:
    """A name beside `target` for the body to make a folder at, which becomes `target` once the body is done and is removed
    where it fails. BackendError where target holds something already, and for an OSError; `what` is being copied."""
    target = target.absolute()
    _refuse_used(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, target)
    except (OSError, shutil.Error) as error:
        if isinstance(error, OSError) and (full := full_disk(error, target)):
            raise BackendError(f"cannot copy {what}: {full}") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BackendError(f"{target}: cannot copy {what} there: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> Path:
    """Copy a folder to `target`, or a file into it, and return where it is; as `arriving`."""
    with arriving(target, str(source)) as partial:
        if source.is_dir():
            shutil.copytree(source, partial)
            return target.absolute()
        partial.mkdir()
        shutil.copy2(source, partial / source.name)
        return target.absolute() / source.name
