"""JSON in every way that rows are saved in it: a line each, an array, objects one after another, rows under a key.

Owns where a row begins and ends, and what a row says that cannot be decoded. Refuses to know files and columns. A row is
cut out by its brackets and decoded alone, so that a damaged or absurd one costs no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

import orjson

from trainer.run.exits import BadInput
from trainer.run.formats.conversation import BadRow, Reason

LINES, ARRAY, VALUES, ONE = "lines", "array", "values", "one"
"""Layouts: a row a line; one array (or several); objects over several lines; one object in one line."""
SNIFFED_BYTES = 1 << 16
READ_BYTES = 1 << 20
ROW_COLUMNS = frozenset(
    [
        "messages",
        "conversations",
        "conversation",
        "tools",
        "functions",
        "segments",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "history",
    ]
)
"""Columns that hold lists of objects in a row: an object with one of them is a row, not a file of rows."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]"]', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]}\s]+")
_BETWEEN = b" \t\r\n,"


def layout(handle: IO[bytes]) -> str:
    """How the file is laid out, by its beginning."""
    head = handle.read(SNIFFED_BYTES).lstrip()
    first, newline, rest = head.partition(b"\n")
    if head[:1] == b"[":
        return LINES if newline and rest.lstrip()[:1] == b"[" and _is_list_of_turns(first) else ARRAY
    if head[:1] != b"{":
        return LINES  # each line will say what it is
    if not newline:
        first, rest = first + handle.readline(), b""
    if _is_json(first):
        return LINES if (rest + handle.read(SNIFFED_BYTES)).strip() else ONE
    return VALUES if first.rstrip()[-1:] in (b"{", b"[", b",", b":") else LINES


def decode_lines(block: bytes) -> Iterator[dict[str, Any] | BadRow | None]:
    """The rows of whole lines; a BadRow where one cannot be decoded, None where a line is blank."""
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield _second_try(line, error) if line.strip() else None
            continue
        yield row if type(row) is dict else as_row(row)


def decode(raw: bytes) -> dict[str, Any] | BadRow:
    """One row."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _second_try(raw, error)
    return row if type(row) is dict else as_row(row)


def as_row(value: Any) -> dict[str, Any] | BadRow:
    """A row that is no object: a bare list of turns is one all the same."""
    if isinstance(value, dict | BadRow):
        return value
    if _are_turns(value):
        return {"messages": value}
    return BadRow(Reason.NOT_TEXT, f"the row is {type(value).__name__}, not an object")


def elements(handle: IO[bytes], name: str) -> Iterator[bytes]:
    """Each element of an array (or of several), or each of several objects, as its bytes; memory does not grow with the file.

    Raises BadInput where the file breaks off.
    """
    buffer, at, number, depth, ended = b"", 0, 0, 0, False
    while True:
        while at < len(buffer) and buffer[at] in _BETWEEN:
            at += 1
        byte = buffer[at : at + 1]
        if byte == b"]" and depth:
            depth, at = 0, at + 1
            continue
        if byte == b"[" and not depth:
            depth, at = 1, at + 1
            continue
        if byte and not depth and byte != b"{":
            raise BadInput(
                f"{name} is not JSON behind row {number}: {buffer[at : at + 20].decode('utf-8', 'replace')!r}"
            )
        end = _end_of(buffer, at, ended)
        if end >= 0:
            number += 1
            yield buffer[at:end]
            at = end
            continue
        if ended:
            if byte or depth:
                raise BadInput(f"{name} breaks off or is not JSON behind row {number}")
            return
        more = handle.read(max(READ_BYTES, len(buffer) - at))
        buffer, at, ended = buffer[at:] + more, 0, not more


def rows_of(found: Any, field: str | None, split: str, name: str) -> list[Any]:
    """The rows of a file that is one object: those under a key, or the object itself.

    `field` names the key; otherwise it is the split's name, or the only key that holds a list of objects. Raises BadInput
    where it is none or several.
    """
    if not isinstance(found, dict):
        return [found]
    lists = {
        key: value
        for key, value in found.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    if field is not None:
        if field not in lists:
            raise BadInput(f"{name}: there are no rows under '{field}'; its keys are {', '.join(sorted(found))}")
        return lists[field]
    if not lists or found.keys() & ROW_COLUMNS:
        return [found]
    if split in lists:
        return lists[split]
    others = sorted(lists.keys() & {"train", "training", "validation", "valid", "dev", "test"})
    if len(lists) == 1 and not others:
        return next(iter(lists.values()))
    raise BadInput(
        f"{name}: its rows lie under {' and '.join(repr(key) for key in sorted(lists))}, and the source asks for the split "
        f"'{split}'; say which with `field:`, for example `field: {(others or sorted(lists))[0]}`"
    )


def _second_try(raw: bytes, error: Exception) -> dict[str, Any] | BadRow:
    """What the stricter parser refuses: Python's own takes NaN and half characters, which templates may never see."""
    try:
        row = json.loads(raw)
    except RecursionError:
        return BadRow(Reason.UNDECODABLE, "not JSON that can be read: it is nested too deeply")
    except ValueError:
        return BadRow(Reason.UNDECODABLE, f"not JSON: {error}")
    return row if isinstance(row, dict) else as_row(row)


def _are_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
    )


def _is_list_of_turns(line: bytes) -> bool:
    try:
        return _are_turns(orjson.loads(line))
    except orjson.JSONDecodeError:
        return False


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _end_of(buffer: bytes, at: int, ended: bool) -> int:
    """Where the value that begins at `at` ends; -1 where the buffer ends first."""
    first = buffer[at : at + 1]
    if first in (b"{", b"["):
        depth = 0
        for match in _TOKEN.finditer(buffer, at):
            byte = buffer[match.start()]
            if byte in b"{[":
                depth += 1
            elif byte in b"}]":
                depth -= 1
                if not depth:
                    return match.end()
            elif match.end() - match.start() == 1:  # a string that goes on behind the buffer
                return -1
        return -1
    scalar = (_TOKEN if first == b'"' else _SCALAR).match(buffer, at)
    if scalar is None or (first == b'"' and scalar.end() - scalar.start() == 1):
        return -1
    return scalar.end() if scalar.end() < len(buffer) or ended else -1
