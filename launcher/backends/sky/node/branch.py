"""Names for the contents of a run's folder, where each node has a folder of its own and takes over what a bucket kept.

A bucket is behind: what a node said after its last upload is at home, and not in what the next node goes on from. So that one's
lines are a branch with a name of its own, whose first lines are those of the branch before, up to where it was taken over.

Shipped to the node beside the relay. The standard library alone, Python 3.8 or later. Refuses to know the bucket and the frames.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Ancestors = list[tuple[str, dict[str, int]]]
    """Branches that one goes back to, the nearest first: the name, and by kind of lines how many of its own it begins with."""

JOURNAL = "journal"
"""In the run folder: the branch's name, and on a second line what it goes back to."""


def begin(run_dir: str, files: Mapping[str, str], is_copy: bool) -> tuple[str, str]:
    """Name of the branch whose lines this node writes, and its ancestors in words for `parsed`; empty where it has none. `files` is
    the name of a growing file by its kind; `is_copy`: what is in the folder may be less than the node before has said."""
    path = os.path.join(run_dir, JOURNAL)
    try:
        with open(path) as handle:
            name, ancestors = parsed(handle.read())
    except FileNotFoundError:
        name, ancestors = "", []
    if name and not is_copy:
        return name, json.dumps(ancestors) if ancestors else ""
    if name:
        ancestors = [(name, {kind: _lines(os.path.join(run_dir, file)) for kind, file in files.items()}), *ancestors]
    name, words = os.urandom(4).hex(), json.dumps(ancestors) if ancestors else ""
    with open(path + ".new", "w") as handle:
        handle.write(name + "\n" + words)
    os.replace(path + ".new", path)
    return name, words


def end_torn_lines(paths: Iterable[str]) -> None:
    """A node that was taken away in the middle of a line: end it, so that the next one is whole."""
    for path in paths:
        try:
            with open(path, "rb+") as handle:
                if handle.seek(0, os.SEEK_END) and (handle.seek(-1, os.SEEK_END), handle.read(1))[1] != b"\n":
                    handle.write(b"\n")
        except FileNotFoundError:
            continue


def parsed(text: str) -> tuple[str, Ancestors]:
    """Name and ancestors of a journal's text. Of one that is no journal the name is empty; ancestors that make no sense are none:
    whoever writes to the bucket may have written it."""
    name, _, words = text.partition("\n")
    try:
        found = [
            (str(each), {str(kind): int(count) for kind, count in counts.items()})
            for each, counts in (json.loads(words) if words.strip() else [])
        ]
    except (ValueError, TypeError, AttributeError, RecursionError):
        found = []
    return name.strip() if re.fullmatch(r"\w+", name.strip()) else "", found


def _lines(path: str) -> int:
    """Whole lines of a file."""
    try:
        with open(path, "rb") as handle:
            return sum(part.count(b"\n") for part in iter(lambda: handle.read(1 << 20), b""))
    except FileNotFoundError:
        return 0
