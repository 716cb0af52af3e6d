"""Reads the files of a source as blocks of rows, in order, whatever they are written in.

Owns file types and the numbers of rows. Refuses to know what a row means. A block is small enough to send to a worker; a
block of an uncompressed local JSON Lines file is only a range of bytes, which the worker reads itself.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.data import json_rows, streams
from trainer.run.exits import BadInput
from trainer.run.formats.base import without_padding
from trainer.run.formats.conversation import BadRow, Reason
from trainer.run.local_files import ARROW, CSV, JSON, PARQUET

BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 256
HUB = "hub"
"""The kind of what is no file but a data set of the hub; the others are local_files'."""


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
    field: str | None = None
    """Key under which a JSON file holds its rows, where the source says so."""
    split: str = "train"


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive rows of one file: exactly one of the fields is set."""

    byte_range: tuple[str, int, int] | None = None
    """Path, start and end of whole lines."""
    lines: bytes | None = None
    rows: list[Any] | None = None
    """Rows, or JSON text of rows as bytes."""
    arrow: bytes | None = None
    """A record batch, as an Arrow stream."""
    size_bytes: int = 0
    """Of the file as it lies on disk, for progress."""

    def read(self) -> Iterator[dict[str, Any] | BadRow | None]:
        """The rows; what cannot be decoded is a BadRow in its place, a blank line None."""
        if self.byte_range is not None:
            path, start, end = self.byte_range
            with open(path, "rb") as handle:
                handle.seek(start)
                yield from json_rows.decode_lines(handle.read(end - start))
        elif self.lines is not None:
            yield from json_rows.decode_lines(self.lines)
        elif self.arrow is not None:
            yield from _arrow_rows(self.arrow)
        else:
            for row in self.rows or ():
                yield json_rows.decode(row) if isinstance(row, bytes) else json_rows.as_row(row)


def blocks(file: InputFile) -> Iterator[Block]:
    """All rows of a file, in order. Raises BadInput where the file as a whole cannot be read."""
    try:
        if file.kind == PARQUET:
            yield from _parquet(file)
        elif file.kind == ARROW:
            yield from _arrow(file)
        elif file.kind == JSON:
            yield from _json(file)
        else:
            with streams.opened_as_utf8(file.url, file.compression, file.is_local) as handle:
                yield from _csv(file, handle) if file.kind == CSV else _text(file, handle)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{file.name} cannot be read: {error}") from error


def _json(file: InputFile) -> Iterator[Block]:
    with streams.opened_as_utf8(file.url, file.compression, file.is_local) as handle:
        layout = json_rows.layout(handle)
    if layout == json_rows.LINES and file.is_local and not file.compression:
        with open(file.url, "rb") as raw:
            mark, encoding = streams.encoding_of(raw.read(4))
        if encoding == "utf-8":
            yield from _line_ranges(Path(file.url), mark)
            return
    with streams.opened_as_utf8(file.url, file.compression, file.is_local) as handle:
        if layout == json_rows.LINES:
            yield from _lines(handle)
        elif layout == json_rows.ARRAY:
            yield from _in_blocks(json_rows.elements(handle, file.name))
        else:
            yield from _in_blocks(_objects(file, handle))


def _objects(file: InputFile, handle: IO[bytes]) -> Iterator[Any]:
    """Objects one after another are rows; one alone may hold the rows under a key."""
    found = json_rows.elements(handle, file.name)
    first, second = next(found, None), next(found, None)
    if second is not None:
        yield first
        yield second
        yield from found
    elif first is not None:
        row = json_rows.decode(first)
        yield from [row] if isinstance(row, BadRow) else json_rows.rows_of(row, file.field, file.split, file.name)


def _line_ranges(path: Path, start: int) -> Iterator[Block]:
    size = path.stat().st_size
    with open(path, "rb") as handle:
        while start < size:
            handle.seek(min(start + BLOCK_BYTES, size))
            handle.readline()
            end = handle.tell()
            yield Block(byte_range=(str(path), start, end), size_bytes=end - start)
            start = end


def _lines(handle: IO[bytes]) -> Iterator[Block]:
    while block := handle.read(BLOCK_BYTES):
        block += handle.readline()
        yield Block(lines=block, size_bytes=len(block))


def _text(file: InputFile, handle: IO[bytes]) -> Iterator[Block]:
    yield Block(rows=[{"text": handle.read().decode("utf-8")}], size_bytes=file.size_bytes)


def _csv(file: InputFile, handle: IO[bytes]) -> Iterator[Block]:
    """Rows by the names of the first line. Bytes that are no UTF-8 stay in their row, for it to be refused."""
    csv.field_size_limit(1 << 30)
    text = io.TextIOWrapper(handle, encoding="utf-8", errors="surrogateescape", newline="")
    yield from _in_blocks(_csv_rows(file, text, "\t" if ".tsv" in file.name.lower() else ","))


def _csv_rows(file: InputFile, text: io.TextIOWrapper, delimiter: str) -> Iterator[Any]:
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise BadInput(f"{file.name}: the line with the columns' names is no CSV: {error}") from error
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise BadInput(f"{file.name}: the first line names the column '{repeated[0]}' twice; rename one")
    number = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            if "unexpected end of data" in str(error):  # everything behind the open quote is inside it
                raise BadInput(f"{file.name}: a quote that is opened in row {number} is never closed") from error
            yield BadRow(Reason.UNDECODABLE, f"not CSV: {error}")
            continue
        if not cells:
            continue
        number += 1
        if len(cells) != len(names):
            why = f"the row has {len(cells)} cells and the first line {len(names)} names: is a comma not in quotes?"
            yield BadRow(Reason.UNDECODABLE, why)
        else:
            yield dict(zip(names, cells, strict=True))


def _in_blocks(rows: Iterator[Any]) -> Iterator[Block]:
    held: list[Any] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row) if isinstance(row, bytes) else 0
        if len(held) == BLOCK_ROWS or size >= BLOCK_BYTES:
            yield Block(rows=held, size_bytes=size)
            held, size = [], 0
    if held:
        yield Block(rows=held, size_bytes=size)


def _arrow(file: InputFile) -> Iterator[Block]:
    """A file of the datasets library's `save_to_disk`, or of its cache: a stream, or Arrow's file format."""
    import pyarrow as pa

    with streams.opened(file.url, file.compression, file.is_local) as handle:
        try:
            is_file = handle.read(6) == b"ARROW1"
            handle.seek(0)
            if is_file:
                table = pa.ipc.open_file(handle)
                batches: Iterator[Any] = (table.get_batch(number) for number in range(table.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(handle))
            for batch in batches:
                for start in range(0, batch.num_rows, BLOCK_ROWS):
                    yield _batch_block(batch.slice(start, BLOCK_ROWS), 0)
        except pa.ArrowException as error:
            raise BadInput(f"{file.name} cannot be read as Arrow: {error}") from error


def _parquet(file: InputFile) -> Iterator[Block]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with streams.opened(file.url, file.compression, file.is_local) as handle:
        try:
            table = pq.ParquetFile(handle)
            rows = max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=BLOCK_ROWS, use_threads=False):
                yield _batch_block(batch, file.size_bytes * batch.num_rows // rows)
        except pa.ArrowException as error:
            raise BadInput(f"{file.name} cannot be read as Parquet: {error}") from error


def _batch_block(batch: Any, size_bytes: int) -> Block:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return Block(arrow=sink.getvalue().to_pybytes(), size_bytes=size_bytes)


def _arrow_rows(stream: bytes) -> Iterator[dict[str, Any] | BadRow]:
    import pyarrow as pa

    with pa.ipc.open_stream(stream) as batches:
        for batch in batches:
            try:
                rows = batch.to_pylist()
            except (ValueError, OverflowError, pa.ArrowException):  # one cell that Python cannot hold, or no UTF-8
                rows = [_arrow_row(batch.slice(number, 1)) for number in range(batch.num_rows)]
            for row in rows:
                if isinstance(row, dict):
                    yield {name: without_padding(value) for name, value in row.items()}
                else:
                    yield row


def _arrow_row(one: Any) -> dict[str, Any] | BadRow:
    import pyarrow as pa

    try:
        (row,) = one.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return BadRow(Reason.UNDECODABLE, f"a value cannot be read: {error}")
    found: dict[str, Any] | BadRow = row
    return found
