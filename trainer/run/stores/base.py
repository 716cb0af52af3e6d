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
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

PROBE = "probe-"
"""What the probe's object is called."""
TEMPORARY = ".writing-"
"""What a file is called until it is whole. Never listed."""


class StoreError(Exception):
    """The store does not answer, is full, or refuses: not a statement about what is stored."""


class NotInStore(StoreError):
    """There is no such object."""


class StoreRefused(StoreError):
    """The store answers, and what it says will not change by asking again: no such bucket, no right, an expired token."""


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


class FolderStore:
    """A folder on a local or shared file system."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def list(self, prefix: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        with _explained(self.root / prefix):
            for folder, _, names in os.walk(self.root / prefix, onerror=_raise_unless_missing):
                for name in names:
                    if not name.startswith(TEMPORARY):
                        path = Path(folder) / name
                        with contextlib.suppress(FileNotFoundError):
                            found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    def get(self, name: str) -> bytes:
        with _explained(self.root / name), _regular(self.root / name) as handle:
            return handle.read()

    def get_range(self, name: str, start: int, length: int) -> bytes:
        with _explained(self.root / name), _regular(self.root / name) as handle:
            handle.seek(start)
            return handle.read(length)

    def put(self, name: str, data: bytes) -> None:
        with self.writing(name) as handle:
            handle.write(data)

    def put_file(self, name: str, path: Path) -> None:
        with self.writing(name) as handle, open(path, "rb") as source:
            shutil.copyfileobj(source, handle, 16 << 20)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A new file that appears under `name`, flushed to the disk, only where the body ends well."""
        path = self.root / name
        temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "xb") as handle:  # buffered: a raw file takes half of a write and says nothing
                    yield handle
                    handle.flush()
                    os.fsync(handle.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            flush_folder(path.parent)

    def delete(self, name: str) -> None:
        """Also removes the folder that held it where nothing else is left in it."""
        path = self.root / name
        with _explained(path):
            path.unlink(missing_ok=True)
            if path.parent != self.root:
                with contextlib.suppress(OSError):
                    path.parent.rmdir()

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
        raise StoreError(f"{path}: {_REASONS.get(error.errno or 0, error.strerror or str(error))}") from error


_REASONS = {
    errno.EFBIG: "the file is larger than this process may write",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an input/output error",
}


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
