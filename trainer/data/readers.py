"""Reads the files of a source as blocks of rows, in order, whatever they are written in.

Owns file types, compression and the numbers of rows. Refuses to know what a row means. A block is small enough to send to
a worker; a block of an uncompressed local JSON Lines file is only a range of bytes, which the worker reads itself.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from trainer.data.remote import opened
from trainer.run.exits import BadInput
from trainer.run.formats.conversation import BadRow, Reason
from trainer.run.local_files import ARRAY, CSV, LINES, PARQUET

BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 256
HUB = "hub"
"""The kind of what is no file but a data set of the hub; the others are local_files'."""
_BETWEEN_ROWS = (" ", "\t", "\r", "\n", ",")


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of a source."""

    name: str
    """As people know it."""
    key: str
    """What identifies it within its source wherever it lies: part of the cache key."""
    url: str
    """Local path, s3:// or gs:// URL, or what identifies a hub dataset."""
    kind: str
    compression: str
    size_bytes: int
    is_local: bool
    tag: str = ""
    """Of what is not local: the store's own word for the content."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive rows of one file: exactly one of the fields is set."""

    byte_range: tuple[str, int, int] | None = None
    """Path, start and end of whole lines."""
    lines: bytes | None = None
    rows: list[Any] | None = None
    arrow: bytes | None = None
    """A record batch, as an Arrow stream."""
    size_bytes: int = 0
    """Of the file as it lies on disk, for progress."""

    def read(self) -> Iterator[dict[str, Any] | BadRow]:
        """The rows; a line that cannot be decoded is a BadRow in its place."""
        if self.byte_range is not None:
            path, start, end = self.byte_range
            with open(path, "rb") as handle:
                handle.seek(start)
                yield from _decode(handle.read(end - start))
        elif self.lines is not None:
            yield from _decode(self.lines)
        elif self.arrow is not None:
            import pyarrow as pa

            with pa.ipc.open_stream(self.arrow) as stream:
                for batch in stream:
                    yield from batch.to_pylist()
        else:
            for row in self.rows or ():
                yield row if isinstance(row, dict) else _no_row(row)


def blocks(file: InputFile) -> Iterator[Block]:
    """All rows of a file, in order. Raises BadInput where the file as a whole cannot be read."""
    try:
        if file.kind == LINES and file.is_local and not file.compression:
            yield from _line_ranges(Path(file.url))
        elif file.kind == PARQUET:
            yield from _parquet(file)
        else:
            with _opened(file) as handle:
                yield from _streamed(file, handle)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{file.name} cannot be read: {error}") from error


def _decode(block: bytes) -> Iterator[dict[str, Any] | BadRow]:
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if line.strip():
                yield BadRow(Reason.UNDECODABLE, f"not JSON: {error}")
            else:
                yield BadRow(Reason.EMPTY, "the line is empty")
            continue
        yield row if type(row) is dict else _no_row(row)


def _no_row(value: Any) -> BadRow:
    return (
        value
        if isinstance(value, BadRow)
        else BadRow(Reason.NOT_TEXT, f"the row is {type(value).__name__}, not an object")
    )


def _line_ranges(path: Path) -> Iterator[Block]:
    size = path.stat().st_size
    with open(path, "rb") as handle:
        start = 0
        while start < size:
            handle.seek(min(start + BLOCK_BYTES, size))
            handle.readline()
            end = handle.tell()
            yield Block(byte_range=(str(path), start, end), size_bytes=end - start)
            start = end


@contextmanager
def _opened(file: InputFile) -> Iterator[IO[bytes]]:
    with open(file.url, "rb") if file.is_local else opened(file.url) as raw:
        if file.compression == ".gz":
            with gzip.open(raw, "rb") as unzipped:
                yield io.BufferedReader(unzipped)
        elif file.compression == ".zst":
            import zstandard

            try:
                with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as handle:
                    yield io.BufferedReader(handle)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
        else:
            yield raw


def _streamed(file: InputFile, handle: IO[bytes]) -> Iterator[Block]:
    if file.kind == LINES:
        yield from _lines(handle)
    elif file.kind == ARRAY:
        yield from _array_or_lines(file, handle)
    elif file.kind == CSV:
        csv.field_size_limit(1 << 30)
        delimiter = "\t" if ".tsv" in file.name else ","
        text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
        yield from _in_blocks(csv.DictReader(text, delimiter=delimiter, strict=True))
    else:
        yield Block(rows=[{"text": handle.read().decode("utf-8")}], size_bytes=file.size_bytes)


def _lines(handle: IO[bytes]) -> Iterator[Block]:
    while block := handle.read(BLOCK_BYTES):
        block += handle.readline()
        yield Block(lines=block, size_bytes=len(block))


def _array_or_lines(file: InputFile, handle: IO[bytes]) -> Iterator[Block]:
    """A .json file is one array of rows; some hold JSON Lines all the same, which the first character tells."""
    head = handle.read(64)
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
        rest = head + handle.readline()
        yield Block(lines=rest, size_bytes=len(rest))
        yield from _lines(handle)
        return
    yield from _in_blocks(_array_rows(file, head, handle))


def _array_rows(file: InputFile, head: bytes, handle: IO[bytes]) -> Iterator[Any]:
    """Rows of a JSON array one at a time, so that memory does not grow with the file."""
    decoder, parser = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
    buffer, at, number, ended = decoder.decode(head).lstrip(), 1, 0, False
    if not buffer.startswith("["):
        raise BadInput(f"{file.name} is neither a JSON array nor JSON Lines")
    while True:
        while buffer.startswith(_BETWEEN_ROWS, at):
            at += 1
        if buffer.startswith("]", at):
            return
        try:
            row, end = parser.raw_decode(buffer, at)
            if end == len(buffer) and not ended:
                raise ValueError("more may follow")
        except ValueError as error:
            buffer, at = buffer[at:], 0
            more = handle.read(max(BLOCK_BYTES, len(buffer)))
            if not more:
                if ended:
                    raise BadInput(f"{file.name} breaks off or is not JSON behind row {number}: {error}") from error
                ended = True
            buffer += decoder.decode(more, final=not more)
            continue
        number += 1
        yield row
        at = end


def _in_blocks(rows: Iterator[Any]) -> Iterator[Block]:
    held: list[Any] = []
    for row in rows:
        held.append(row)
        if len(held) == BLOCK_ROWS:
            yield Block(rows=held)
            held = []
    if held:
        yield Block(rows=held)


def _parquet(file: InputFile) -> Iterator[Block]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _opened(file) as handle:
        try:
            table = pq.ParquetFile(handle)
            rows = max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=BLOCK_ROWS, use_threads=False):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                yield Block(arrow=sink.getvalue().to_pybytes(), size_bytes=file.size_bytes * batch.num_rows // rows)
        except pa.ArrowException as error:
            raise BadInput(f"{file.name} cannot be read as Parquet: {error}") from error
