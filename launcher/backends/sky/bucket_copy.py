"""What a run left in its bucket, brought home. The names below the URL are `node.bucket`'s.

Owns the way of a large object over a line that breaks: straight to the disk, from where the last copy stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from launcher.runs.copying import Told, going_on, report
from launcher.runs.errors import BackendError
from trainer.run.exits import BadInput
from trainer.run.run_folder import write_atomic
from trainer.run.stores.base import CheckpointStore, FolderStore, StoreError
from trainer.run.stores.opening import open_store
from trainer.run.stores.ranges import ranges

STATE_FILE = ".fetch.json"
"""In an unfinished copy: which content each of its files belongs to."""

Listing = dict[str, tuple[int, str]]
"""Name of an object to its size and the store's word for its content."""


def copy_prefix(url: str, target: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Everything below the URL as the folder `target`, whole or not at all; what has arrived is kept where it fails, and gone
    on from by the next call. BackendError where there is nothing."""
    with going_on(target, url) as partial:
        try:
            store = open_store(url, environment=environment)
            listing = _listing(store)
            if not listing:
                raise BackendError(f"{url}: holds nothing; nothing was copied")
            _copy(store, listing, partial)
            if _listing(store) != listing:
                raise BackendError(f"{url}: changed while it was copied; the same command takes what changed")
        except ImportError:
            raise BackendError(f"{url}: reading a bucket needs obstore; pip install 'dolphin-launcher[sky]'") from None
        except (StoreError, BadInput) as error:
            raise BackendError(f"{url}: cannot be copied to {target}: {error}") from None
        (partial / STATE_FILE).unlink()
    return target.absolute()


def _listing(store: CheckpointStore) -> Listing:
    if isinstance(store, FolderStore):
        return {name: (size, "") for name, size in store.list().items()}
    from trainer.run.stores.object_store import ObjectStore

    assert isinstance(store, ObjectStore)
    return {name: (entry["size"], str(entry.get("e_tag"))) for name, entry in store.entries().items()}


def _copy(store: CheckpointStore, listing: Listing, partial: Path) -> None:
    before = _state(partial)
    for name in [*before, *listing]:
        if _leads_out(name):
            raise BackendError(
                f"{store.url}: an object is called {name[:100]!r}, which is no name of a file below a folder"
            )
    for name, content in before.items():
        if listing.get(name) != content:
            (partial / name).unlink(missing_ok=True)
    write_atomic(partial / STATE_FILE, json.dumps(listing))
    told = Told(sum(size for size, _ in listing.values()))
    for name, (size, _) in sorted(listing.items()):
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as handle:
            handle.truncate(min(handle.tell(), size))
            there = handle.seek(0, os.SEEK_END)
            told.arrived += there
            report(told)
            for data in ranges(store, name, there, size):
                _write(handle, data)
                told.arrived += len(data)
                report(told)
            handle.flush()
            os.fsync(handle.fileno())


def _write(handle: BinaryIO, data: bytes) -> None:
    handle.write(data)
    handle.flush()  # what was written is what the next copy goes on from


def _state(partial: Path) -> Listing:
    """Which content the files of an unfinished copy belong to; of one that does not say, nothing is taken."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = json.loads((partial / STATE_FILE).read_bytes())
        return {str(name): (int(size), str(tag)) for name, (size, tag) in found.items()}
    return {}


def _leads_out(name: str) -> bool:
    return name == STATE_FILE or name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/"))
