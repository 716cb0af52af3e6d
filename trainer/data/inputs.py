"""Finds the files of each source, and identifies their content for the cache key.

Owns paths, folders, globs and URLs. Refuses to know rows. The content of a local file is hashed once: its hash is kept by
path, size and time of change, so that a second launch reads nothing.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data import hub
from trainer.data.readers import HUB, KINDS, Block, InputFile, blocks, kind_of
from trainer.exits import BadInput
from trainer.rundir import write_atomic
from trainer.spec import SourceSpec

_READ_BYTES = 1 << 22


def where(number: int, source: SourceSpec) -> str:
    """How messages name a source."""
    return f"data.sources[{number}] {source.path}"


def files_of(source: SourceSpec, place: str) -> list[InputFile]:
    """The files of a source, in a fixed order. Raises BadInput where there are none."""
    if hub.is_hub(source):
        return hub.files_of(source, place)
    if "://" in source.path:
        return _remote(source.path, place)
    path = Path(source.path)
    if path.is_dir():
        found = sorted(
            child for child in path.rglob("*") if child.is_file() and kind_of(child.name) and not _hidden(child, path)
        )
        root = path
    elif path.is_file():
        found, root = [path], path.parent
    else:
        found = sorted(Path(match) for match in glob.glob(source.path, recursive=True) if Path(match).is_file())
        root = Path(os.path.commonpath([child.parent for child in found])) if found else path
    if not found:
        raise BadInput(
            f"{place}: there is no such file, folder or match; the path must be absolute or relative to job.yaml"
        )
    return [_local(child, root, place) for child in found]


def blocks_of(file: InputFile) -> Iterator[Block]:
    """All rows of a file, in order."""
    return hub.blocks(file) if file.kind == HUB else blocks(file)


def fingerprints(files: list[InputFile], cache_dir: Path) -> list[str]:
    """Hash of the content of each file, from the memory of earlier runs where the file has not changed since."""
    memory_path = cache_dir / "fingerprints.json"
    try:
        memory: dict[str, list[Any]] = json.loads(memory_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        memory = {}
    out, changed = [], False
    for file in files:
        if not file.is_local:
            out.append(hub.fingerprint(file) if file.kind == HUB else _remote_fingerprint(file))
            continue
        status = os.stat(file.url)
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = memory.get(os.path.abspath(file.url))
        if known is None or known[:-1] != state:
            known = [*state, _content_hash(file.url)]
            memory[os.path.abspath(file.url)] = known
            changed = True
        out.append(known[-1])
    if changed:
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(memory_path, json.dumps(memory))
    return out


def _local(path: Path, root: Path, place: str) -> InputFile:
    return InputFile(
        name=str(path),
        key=path.relative_to(root).as_posix(),
        url=str(path),
        size_bytes=path.stat().st_size,
        is_local=True,
        **_kind(path.name, place),
    )


def _kind(name: str, place: str) -> dict[str, str]:
    kind = kind_of(name)
    if kind is None:
        raise BadInput(f"{place}: {name} is of no known type; there are {', '.join(KINDS)}, also with .gz or .zst")
    return {"kind": kind[0], "compression": kind[1]}


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _content_hash(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _remote(url: str, place: str) -> list[InputFile]:
    """Files under an s3:// or gs:// URL: an object, a prefix or a glob."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        protocol = url.split("://", 1)[0]
        if any(character in path for character in "*?["):
            found = sorted(filesystem.glob(path))
        elif filesystem.isfile(path):
            found = [path]
        else:
            found = sorted(child for child in filesystem.find(path) if kind_of(child))
        details = [filesystem.info(child) for child in found]
    except ImportError as error:
        raise BadInput(f"{place}: {error}; install it in the environment of the trainer") from error
    except ValueError as error:
        raise BadInput(f"{place}: {error}") from error
    except OSError as error:
        raise BadInput(f"{place}: cannot be listed: {error}") from error
    if not found:
        raise BadInput(f"{place}: there is nothing there")
    root = os.path.commonpath([child.rsplit("/", 1)[0] for child in found])
    return [
        InputFile(
            name=f"{protocol}://{child}",
            key=child[len(root) :].lstrip("/"),
            url=f"{protocol}://{child}",
            size_bytes=int(detail.get("size") or 0),
            is_local=False,
            **_kind(child.rsplit("/", 1)[-1], place),
        )
        for child, detail in zip(found, details, strict=True)
    ]


def _remote_fingerprint(file: InputFile) -> str:
    """What the store itself says of the content: its checksum, else its version."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file.url)
    detail = filesystem.info(path)
    for name in ("ETag", "etag", "md5Hash", "generation"):
        if detail.get(name):
            return f"{name}:{detail[name]}:{detail.get('size')}"
    return str(filesystem.ukey(path))
