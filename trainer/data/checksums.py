"""Checksums of a cache entry's files: written when it is finished, held against the files when it is opened and read.

A flipped bit in the tokens would train another model without a word, and a file that a crash left empty would break every
later run of that data. Files up to WHOLE_BYTES are read whole at once; of a larger one, which ranks read here and there, each
block when it is first looked at (xxh3 makes gigabytes a second). Refuses to know what the files hold.

    checksums.json   {"block_bytes", "files": {name: {"size", "xxh3"}}}: of every file beside it
    NAME.blocks      of a large file: xxh3-64 of each of its blocks, little-endian
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

NAME = "checksums.json"
BLOCKS = ".blocks"
BLOCK_BYTES = 1 << 18
WHOLE_BYTES = 1 << 30
"""A file up to this size is read whole when the entry is opened: a fifth of a second at 5 GB/s."""
_READ_BYTES = 1 << 24


class DamagedEntry(Exception):
    """An entry is not what was written; the message says which file, and how."""


def write(folder: Path, names: list[str], in_blocks: list[str]) -> None:
    """Sum up the files of `folder` (`in_blocks` also block by block), and flush them, the sums and the folder to disk."""
    for name in in_blocks:
        with open(folder / name, "rb") as handle:
            sums = [xxhash.xxh3_64_intdigest(block) for block in iter(lambda: handle.read(BLOCK_BYTES), b"")]
        np.array(sums, "<u8").tofile(folder / f"{name}{BLOCKS}")
    every = [*names, *in_blocks, *(f"{name}{BLOCKS}" for name in in_blocks)]
    files = {name: {"size": (folder / name).stat().st_size, "xxh3": _whole(folder / name)} for name in every}
    text = json.dumps({"block_bytes": BLOCK_BYTES, "files": files}, indent=1)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")
    for name in (*every, NAME, "."):
        flush(folder / name)


def flush(path: Path) -> None:
    """Have a file, or a folder's list of names, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(folder: Path, needed: list[str]) -> dict[str, Blocks]:
    """Hold an entry's files against their sums; `needed` must be among them. The guards of those that are too large to be
    read whole, by name.

    Raises DamagedEntry; FileNotFoundError where there is no entry.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        files, block_bytes = content["files"], int(content["block_bytes"])
        missing = [name for name in needed if name not in files]
        if missing or block_bytes <= 0:
            raise DamagedEntry(f"{NAME} says nothing of {', '.join(missing)}")
        lazily = []
        for name, said in files.items():
            path, size = folder / name, said["size"]
            if path.stat().st_size != size:
                raise DamagedEntry(f"{name} has {path.stat().st_size:,} bytes, not {size:,}")
            if size > WHOLE_BYTES and f"{name}{BLOCKS}" in files:
                lazily.append(name)
            elif _whole(path) != said["xxh3"]:
                raise DamagedEntry(f"{name} is not what was written")
        return {name: Blocks(folder / name, block_bytes) for name in lazily}
    except OSError as error:
        raise DamagedEntry(f"{Path(error.filename or folder).name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedEntry(f"{NAME} cannot be read") from error


class Blocks:
    """Guards one large file: each block is read and held against its sum when it is first looked at."""

    def __init__(self, path: Path, block_bytes: int) -> None:
        self._path, self._block_bytes = path, block_bytes
        self._sums = np.fromfile(path.with_name(f"{path.name}{BLOCKS}"), "<u8")
        self._is_good = np.zeros(len(self._sums), bool)
        self._bytes: Any = np.memmap(path, np.uint8, mode="r")

    def check(self, start: int, end: int) -> None:
        """Bytes [start, end) of the file. Raises DamagedEntry."""
        first, last = start // self._block_bytes, -(-end // self._block_bytes)
        if self._is_good[first:last].all():
            return
        for block in range(first, last):
            content = self._bytes[block * self._block_bytes : (block + 1) * self._block_bytes]
            if xxhash.xxh3_64_intdigest(content) != self._sums[block]:
                raise DamagedEntry(f"{self._path.name} is not what was written, in its block {block}")
            self._is_good[block] = True


def _whole(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as handle:
        while block := handle.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
