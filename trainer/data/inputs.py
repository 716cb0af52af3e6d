"""Finds the files of each source, and identifies their content for the cache key.

Owns paths, folders, globs and URLs. Refuses to know rows. The content of a local file is hashed once: its hash is kept by
path, size and time of change, so that a second launch reads nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data import hub, remote
from trainer.data.readers import HUB, Block, InputFile, blocks
from trainer.data.splits import keys_of_split
from trainer.run.exits import BadInput
from trainer.run.local_files import KINDS, data_files, is_data, kind_of
from trainer.run.run_folder import make_private, write_atomic
from trainer.run.settings.data import SourceSpec

_READ_BYTES = 1 << 22


def place_of(key: tuple[str | int, ...], source: SourceSpec) -> str:
    """How messages name a source, or the files of a validation set: `data.sources[0] PATH`."""
    group, name, index = key
    return f"{group}.{name}[{index}] {source.path}"


def files_of(source: SourceSpec, place: str) -> list[InputFile]:
    """The files of a source, in a fixed order. Raises BadInput where there are none."""
    if hub.is_hub(source):
        return hub.files_of(source, place)
    if remote.is_remote(source.path):
        found_objects = remote.objects(source.path, place)
        chosen = [entry for entry in found_objects if is_data(entry.url.rpartition("/")[2])] or found_objects
        if not (len(chosen) == 1 and chosen[0].url == source.path):
            kept = set(_of_split([entry.key for entry in chosen], source, None, place))
            chosen = [entry for entry in chosen if entry.key in kept]
        return [
            InputFile(
                entry.url,
                entry.key,
                entry.url,
                size_bytes=entry.size_bytes,
                is_local=False,
                tag=entry.tag,
                field=source.field,
                split=source.split,
                **_kind(entry.url.rpartition("/")[2], place),
            )
            for entry in chosen
        ]
    found, root = data_files(source.path)
    if found and Path(source.path).is_dir():
        kept = set(_of_split([child.relative_to(root).as_posix() for child in found], source, root, place))
        found = [child for child in found if child.relative_to(root).as_posix() in kept]
    if not found:
        raise BadInput(
            f"{place}: there is no such file, folder or match; the path must be absolute or relative to job.yaml"
        )
    return [_local(child, root, source, place) for child in found]


def blocks_of(file: InputFile) -> Iterator[Block]:
    """All rows of a file, in order."""
    return hub.blocks(file) if file.kind == HUB else blocks(file)


def fingerprints(files: list[InputFile], cache_dir: Path) -> list[str]:
    """Hash of the content of each file, from the memory of earlier runs where the file has not changed since."""
    memory_path = cache_dir / "fingerprints.json"
    try:
        content = json.loads(memory_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    memory: dict[str, Any] = content if isinstance(content, dict) else {}
    out, changed = [], False
    for file in files:
        if not file.is_local:
            out.append(file.tag)
            continue
        status = os.stat(file.url)
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = memory.get(os.path.abspath(file.url))
        if not (isinstance(known, list) and known[:-1] == state and isinstance(known[-1], str)):
            known = [*state, _content_hash(file.url)]
            memory[os.path.abspath(file.url)] = known
            changed = True
        out.append(known[-1])
    if changed:
        make_private(cache_dir)
        write_atomic(memory_path, json.dumps(memory))
    return out


def _of_split(keys: list[str], source: SourceSpec, folder: Path | None, place: str) -> list[str]:
    kept = keys_of_split(keys, source, folder, place)
    left_out = [key for key in keys if key not in set(kept)]
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        print(
            f"{place}: split '{source.split}' is {len(kept)} of {len(keys)} files; of other splits, and left out: "
            f"{', '.join(left_out[:3])}{more}",
            file=sys.stderr,
        )
    return kept


def _local(path: Path, root: Path, source: SourceSpec, place: str) -> InputFile:
    return InputFile(
        name=str(path),
        key=path.relative_to(root).as_posix(),
        url=str(path),
        size_bytes=path.stat().st_size,
        is_local=True,
        field=source.field,
        split=source.split,
        **_kind(path.name, place),
    )


def _kind(name: str, place: str) -> dict[str, str]:
    kind = kind_of(name)
    if kind is None:
        raise BadInput(f"{place}: {name} is of no known type; there are {', '.join(KINDS)}, also with .gz or .zst")
    return {"kind": kind[0], "compression": kind[1]}


def _content_hash(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
