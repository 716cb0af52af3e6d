"""Data in object stores (s3://, gs://): which objects a URL means, what identifies their content, and reading them.

Owns prefixes and globs of URLs. Credentials and endpoints are those of the checkpoint store. Refuses to know file types.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import IO, Any
from urllib.parse import urlsplit

from trainer.run.exits import BadInput

SCHEMES = ("s3", "gs")


@dataclass(frozen=True, slots=True)
class RemoteObject:
    url: str
    key: str
    """Path below what all objects of the source have in common."""
    size_bytes: int
    tag: str
    """The store's own word for the content (its checksum or version)."""


def is_remote(path: str) -> bool:
    return "://" in path


def objects(url: str, place: str) -> list[RemoteObject]:
    """The object of this name, or all objects below it or matching it, by name. Raises BadInput."""
    from trainer.run.stores.base import StoreError
    from trainer.run.stores.object_store import ObjectStore

    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise BadInput(
            f"{place}: unknown scheme {parts.scheme}://; there are hf://, s3:// and gs://, files and folders"
        )
    path = url.split("://", 1)[1].partition("/")[2]
    fixed = path
    for wildcard in "*?[":
        fixed = fixed.partition(wildcard)[0]
    folder = fixed.rpartition("/")[0]
    root = f"{parts.scheme}://{parts.netloc}"
    try:
        found = ObjectStore(root).entries(folder)
    except StoreError as error:
        raise BadInput(f"{place}: cannot be listed: {error}") from error
    if fixed != path:
        names = [name for name in found if fnmatchcase(name, path)]
    elif path in found:
        names, folder = [path], path.rpartition("/")[0]
    else:
        folder = path.rstrip("/")
        names = [name for name in found if not folder or name.startswith(f"{folder}/")]
    if not names:
        raise BadInput(f"{place}: there is nothing there")
    return [
        RemoteObject(
            url=f"{root}/{name}",
            key=name[len(folder) :].lstrip("/"),
            size_bytes=int(found[name]["size"]),
            tag=f"{found[name].get('e_tag')}:{found[name]['size']}",
        )
        for name in sorted(names)
    ]


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """An object as a file."""
    from trainer.run.stores.object_store import ObjectStore

    parts = urlsplit(url)
    path = url.split("://", 1)[1].partition("/")[2]
    with io.BufferedReader(_Raw(ObjectStore(f"{parts.scheme}://{parts.netloc}").open(path)), 1 << 20) as handle:
        yield handle


class _Raw(io.RawIOBase):
    """What the store's reader gives, as Python's own file type: gzip, zstandard and Parquet readers ask for that."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())

    def readinto(self, buffer: Any) -> int:
        data = bytes(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)
