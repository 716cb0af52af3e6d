"""Shard files: safetensors with a checksum for every block, written in one pass and read by range.

Owns the layout of a file, its hashing while it is written, and verified reading from any mixture of stores. The bytes
are laid out here and not by the safetensors library because each is hashed while it is written, from a buffer that is
already in place, with no second copy of a state of many gigabytes; the files open with that library.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Protocol

import torch
import xxhash

from trainer.checkpoint.manifest import BLOCK_BYTES, CorruptCheckpoint, FileEntry, Manifest, Piece
from trainer.engine import threads
from trainer.run.optimizer_state import SAVED_BYTES, SAVED_DTYPE, OptimizerState
from trainer.run.stores.base import CheckpointStore, NotInStore

FILE_BYTES = 1 << 30
"""A rank's state is split into files of about this size: what is uploaded already is not uploaded again."""
READ_AHEAD_BLOCKS = 4
KEPT_BLOCKS = 64


class Writable(Protocol):
    """A file to write to."""

    def write(self, data: memoryview, /) -> int:
        """Takes some of `data`; returns how many bytes."""


def plan_files(
    pieces: Sequence[tuple[str, int, int]], state: OptimizerState, file_bytes: int = FILE_BYTES
) -> list[list[tuple[str, int, int]]]:
    """Split (name, start, numel) into runs of at most about `file_bytes`, in order; none where there are no pieces."""
    files: list[list[tuple[str, int, int]]] = []
    room = 0
    for piece in pieces:
        size = piece[2] * state.saved_bytes
        if not files or size > room:
            files.append([])
            room = file_bytes
        files[-1].append(piece)
        room -= size
    return files


def write_shard(
    handle: Writable,
    name: str,
    pieces: Sequence[tuple[str, int, int]],
    shapes: dict[str, tuple[int, ...]],
    state: OptimizerState,
    parts: Iterable[memoryview],
) -> FileEntry:
    """Write one file. The parts hold the tensors of the state of each piece one after the other, fp32."""
    placed, offset = [], 0
    for parameter, start, numel in pieces:
        placed.append(Piece(parameter, start, numel, offset))
        offset += numel * state.saved_bytes
    shapes_text = json.dumps({parameter: shapes[parameter] for parameter, _, _ in pieces})
    header = {"__metadata__": {"format": "pt", "shapes": shapes_text}, **_header_entries(placed, state)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    writer = HashingWriter(handle)
    writer.write(memoryview(len(text).to_bytes(8, "little") + text))
    before = 8 + len(text)
    for part in parts:
        writer.write(part)
    return writer.entry(name, tuple(piece._replace(offset=piece.offset + before) for piece in placed))


def _header_entries(pieces: Iterable[Piece], state: OptimizerState, data_start: int = 0) -> dict[str, object]:
    """The safetensors header's entries for `pieces`; `data_start` is where the data begins that offsets count from."""
    entries: dict[str, object] = {}
    for piece in pieces:
        for index, tensor in enumerate(state.tensors):
            begin = piece.offset - data_start + index * piece.numel * SAVED_BYTES
            key = f"{piece.name}[{piece.start}:{piece.start + piece.numel}].{tensor.name}"
            end = begin + piece.numel * SAVED_BYTES
            entries[key] = {"dtype": "F32", "shape": [piece.numel], "data_offsets": [begin, end]}
    return entries


class HashingWriter:
    """Writes through to a file and keeps the checksums of the whole and of each block."""

    def __init__(self, handle: Writable) -> None:
        self._handle = handle
        self._whole = xxhash.xxh3_128()
        self._block = xxhash.xxh3_64()
        self._blocks: list[str] = []
        self._size = 0

    def write(self, data: memoryview) -> None:
        position = 0
        while position < len(data):
            room = BLOCK_BYTES - self._size % BLOCK_BYTES
            part = data[position : position + room]
            written = self._handle.write(part)
            part = part[:written]
            self._whole.update(part)
            self._block.update(part)
            self._size += len(part)
            position += len(part)
            if self._size % BLOCK_BYTES == 0:
                self._close_block()

    def entry(self, name: str, pieces: tuple[Piece, ...] = ()) -> FileEntry:
        """Called once, after the last write."""
        if self._size % BLOCK_BYTES:
            self._close_block()
        return FileEntry(
            name=name,
            size_bytes=self._size,
            checksum=self._whole.hexdigest(),
            blocks=tuple(self._blocks),
            pieces=pieces,
        )

    def _close_block(self) -> None:
        self._blocks.append(self._block.hexdigest())
        self._block.reset()


class ShardReader:
    """Reads ranges of parameters from a checkpoint; every byte that is handed out has passed its checksum.

    `stores` are asked in order, block by block: a local copy first, and what is missing or damaged there from the next.
    """

    def __init__(self, manifest: Manifest, stores: Sequence[CheckpointStore]) -> None:
        self.manifest = manifest
        self._state = manifest.optimizer_state
        self._stores = list(stores)
        self._pool = threads.pool(4, "checkpoint-read")
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._agreed: set[str] = set()
        self._ranges: dict[str, list[tuple[Piece, FileEntry]]] = {}
        for file in manifest.files:
            for piece in file.pieces:
                self._ranges.setdefault(piece.name, []).append((piece, file))
        for found in self._ranges.values():
            found.sort(key=lambda item: item[0].start)

    def read(self, name: str, start: int, numel: int) -> tuple[torch.Tensor, ...]:
        """The tensors of the state of a flat range. Raises CorruptCheckpoint, or StoreError."""
        out = torch.empty(len(self._state.tensors), numel, dtype=getattr(torch, SAVED_DTYPE))
        covered = 0
        for piece, file in self._ranges.get(name, ()):
            left, right = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if left >= right:
                continue
            self._check_header(file)
            for row in range(len(out)):
                offset = piece.offset + (row * piece.numel + left - piece.start) * SAVED_BYTES
                target = out[row, left - start : right - start]
                view = memoryview(target.numpy()).cast("B")
                for part, position in self._bytes(file, offset, (right - left) * SAVED_BYTES):
                    view[position : position + len(part)] = part
            covered += right - left
        if covered != numel:
            raise CorruptCheckpoint(f"it holds {covered} of {numel} elements of {name}")
        return tuple(out)

    def read_file(self, name: str) -> bytes:
        """A whole small file, verified."""
        file = self.manifest.file(name)
        data = self._join(file, 0, file.size_bytes)
        if xxhash.xxh3_128_hexdigest(data) != file.checksum:
            raise CorruptCheckpoint(f"{name} does not match its checksum")
        return data

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._blocks.clear()

    def _check_header(self, file: FileEntry) -> None:
        """The file's own table must agree with the manifest's, once per file."""
        if file.name in self._agreed:
            return
        length = int.from_bytes(self._join(file, 0, 8), "little")
        try:
            header = json.loads(self._join(file, 8, length)) if length < file.size_bytes else {}
        except ValueError:
            header = {}
        header.pop("__metadata__", None)
        if header != _header_entries(file.pieces, self._state, data_start=8 + length):
            raise CorruptCheckpoint(f"{file.name} does not hold what its manifest says")
        self._agreed.add(file.name)

    def _join(self, file: FileEntry, start: int, length: int) -> bytes:
        return b"".join(part for part, _ in self._bytes(file, start, length))

    def _bytes(self, file: FileEntry, start: int, length: int) -> Iterable[tuple[memoryview, int]]:
        """(bytes, position in the wanted range) for `length` bytes from `start`."""
        end = start + length
        for index in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            block = self._block(file, index)
            left, right = max(start, index * BLOCK_BYTES), min(end, (index + 1) * BLOCK_BYTES)
            yield memoryview(block)[left - index * BLOCK_BYTES : right - index * BLOCK_BYTES], left - start

    def _block(self, file: FileEntry, index: int) -> bytes:
        for ahead in range(index, min(index + READ_AHEAD_BLOCKS, len(file.blocks))):
            key = (file.name, ahead)
            if key not in self._blocks:
                self._blocks[key] = self._pool.submit(self._fetch, file, ahead)
        self._blocks.move_to_end((file.name, index))
        block = self._blocks[file.name, index].result()
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)[1].cancel()
        return block

    def _fetch(self, file: FileEntry, index: int) -> bytes:
        name = f"{self.manifest.folder}/{file.name}"
        length = min(BLOCK_BYTES, file.size_bytes - index * BLOCK_BYTES)
        trouble = "is missing"
        for store in self._stores:
            try:
                data = store.get_range(name, index * BLOCK_BYTES, length)
            except NotInStore:
                continue
            if len(data) == length and xxhash.xxh3_64_hexdigest(data) == file.blocks[index]:
                return data
            trouble = "is cut off" if len(data) < length else f"does not match its checksum in block {index}"
        raise CorruptCheckpoint(f"{file.name} {trouble}")
