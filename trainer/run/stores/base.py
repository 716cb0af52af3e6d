"""CheckpointStore: where checkpoints outlive a process, as a flat space of named objects, and the folder that is one.

Owns the protocol, its errors, and durable writes to a file system. A name is a relative path with slashes. Refuses to
know what the objects mean; that a manifest comes last is the writer's business.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

Answer = TypeVar("Answer")

RETRY_VARIABLE, RETRY_S = "DOLPHIN_STORE_RETRY_S", 180.0
"""How long an operation is tried again before the store is given up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
"""Between attempts at an operation."""
PROBE = "probe-"
"""What the probe's object is called."""
TEMPORARY = ".writing-"
"""What a file is called until it is whole. Never listed."""


class StoreError(Exception):
    """The store does not answer, is full, or refuses: not a statement about what is stored."""


class NotInStore(StoreError):
    """There is no such object."""


class StoreAway(StoreError):
    """The store did not answer for RETRY_S, for a reason that may pass."""


class StoreRefused(StoreError):
    """The store answers, and what it says will not change by asking again: no such bucket, no right, an expired token."""


class Changed(StoreError):
    """Somebody else wrote the object in between."""


class CheckpointStore(Protocol):
    """All writes are whole or not at all, and last once they have returned. Every method may raise StoreError."""

    url: str
    is_local: bool

    def list(self, prefix: str = "") -> dict[str, int]:
        """Names of all objects under the folder `prefix` ("" is everything) -> size in bytes."""

    def get(self, name: str) -> bytes:
        """The whole object. Raises NotInStore."""

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer where the object ends before. Raises NotInStore."""

    def put(self, name: str, data: bytes) -> None:
        """Store a small object, in one atomic step, in place of any of that name."""

    def put_file(self, name: str, path: Path) -> None:
        """Store a file of any size, in parallel parts where the store has them."""

    def delete(self, name: str) -> None:
        """Remove an object; no error where there is none."""


def seconds_to_retry() -> float:
    return float(os.environ.get(RETRY_VARIABLE, RETRY_S))


def persistently(ask: Callable[[], Answer], retry_s: float) -> Answer:
    """What `ask` returns, done from its beginning again while it raises StoreAway: each operation is done anew without harm."""
    until, pause_s = time.monotonic() + retry_s, FIRST_PAUSE_S
    while True:
        try:
            return ask()
        except StoreAway:
            if time.monotonic() + pause_s > until:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class FolderStore:
    """A folder on a local or shared file system. A shared one's server fails over and comes back: what it answers meanwhile
    is no answer, and the operation is done again."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)
        self._retry_s = seconds_to_retry()

    def list(self, prefix: str = "") -> dict[str, int]:
        def ask() -> dict[str, int]:
            found: dict[str, int] = {}
            for folder, _, names in os.walk(self.root / prefix, onerror=_raise_unless_missing):
                for name in names:
                    if not name.startswith(TEMPORARY):
                        path = Path(folder) / name
                        with contextlib.suppress(FileNotFoundError):
                            found[path.relative_to(self.root).as_posix()] = path.stat().st_size
            return found

        return self._whole(self.root / prefix, ask)

    def get(self, name: str) -> bytes:
        def ask() -> bytes:
            with _regular(self.root / name) as handle:
                return handle.read()

        return self._whole(self.root / name, ask)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        def ask() -> bytes:
            with _regular(self.root / name) as handle:
                handle.seek(start)
                return handle.read(length)

        return self._whole(self.root / name, ask)

    def put(self, name: str, data: bytes) -> None:
        self.write(name, lambda handle: handle.write(data))

    def put_file(self, name: str, path: Path) -> None:
        def copy(handle: BinaryIO) -> None:
            with open(path, "rb") as source:
                shutil.copyfileobj(source, handle, 16 << 20)

        self.write(name, copy)

    def write(self, name: str, fill: Callable[[BinaryIO], Answer]) -> Answer:
        """A new file that appears under `name`, flushed to the disk, only where `fill` ends well; what that returns. `fill`
        is called again, with an empty file, where the folder was away for a moment."""
        path = self.root / name

        def ask() -> Answer:
            temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "xb") as handle:  # buffered: a raw file takes half of a write and says nothing
                    filled = fill(handle)
                    handle.flush()
                    os.fsync(handle.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            flush_folder(path.parent)
            return filled

        return self._whole(path, ask)

    def delete(self, name: str) -> None:
        """Also removes the folder that held it where nothing else is left in it."""
        path = self.root / name

        def ask() -> None:
            path.unlink(missing_ok=True)
            if path.parent != self.root:
                with contextlib.suppress(OSError):
                    path.parent.rmdir()

        self._whole(path, ask)

    def refuse_read_only(self) -> None:
        """Raise StoreRefused where the folder is mounted read-only: before a run has begun that is no passing trouble."""
        there = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            raise StoreRefused(f"{self.root}: {_REASONS[errno.EROFS]}")

    def _whole(self, path: Path, ask: Callable[[], Answer]) -> Answer:
        def explained() -> Answer:
            with _explained(path):
                return ask()

        return persistently(explained, self._retry_s)

    def remove_leftovers(self, prefix: str = "") -> None:
        """Delete the temporary files that a killed writer left."""
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                if name.startswith(TEMPORARY):
                    self.delete((Path(folder) / name).relative_to(self.root).as_posix())


def _regular(path: Path) -> BinaryIO:
    """The file, open to be read. Raises NotInStore for what is none: reading a pipe would never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotInStore(f"{path} is no regular file")
    return open(descriptor, "rb")


def flush_folder(path: Path) -> None:
    """Make a rename in `path` last through a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into a StoreError that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotInStore(f"there is no {path}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"the disk of {path} is full") from error
        kind = StoreAway if error.errno in _PASSING else StoreError
        raise kind(f"{path}: {_REASONS.get(error.errno or 0, error.strerror or str(error))}") from error


_REASONS = {
    errno.EFBIG: "the file is larger than this process may write",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an input/output error",
    errno.ESTALE: "the server of this shared folder no longer knows it (stale file handle)",
    errno.ENOTCONN: "this shared folder is not connected",
    errno.ETIMEDOUT: "the server of this shared folder does not answer",
}
_PASSING = frozenset(
    {
        *(
            errno.EIO,
            errno.EREMOTEIO,
            errno.EROFS,
            errno.ESTALE,
            errno.ENOLCK,
            errno.EAGAIN,
            errno.EBUSY,
            errno.ETIMEDOUT,
        ),
        *(errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECOMM),
    }
)
"""What a shared folder says while its server, or the way there, is away; a server that fails over is read-only for a moment."""


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
