"""Folders kept in a store under names that say their content: published once, taken by every later node.

A folder is there once its list of files is, which is written last. Refuses to know what the files hold: whoever takes one
checks it as if it had been made here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from trainer.run.stores.base import CheckpointStore, NotInStore, StoreError
from trainer.run.stores.ranges import ranges

WHOLE = "whole.json"
"""Names and sizes of the files beside it."""


def publish(store: CheckpointStore, name: str, folder: Path, files: Iterable[str], *, is_anew: bool = False) -> int:
    """Put the files of the folder under `name`, unless they are there, or in any case (`is_anew`); bytes that were sent.

    Raises StoreError."""
    sizes = {file: (folder / file).stat().st_size for file in files}
    whole = json.dumps(sizes, indent=1, sort_keys=True).encode()
    try:
        if store.get(f"{name}/{WHOLE}") == whole and not is_anew:
            return 0
        store.delete(f"{name}/{WHOLE}")
    except NotInStore:
        pass
    for file in sizes:
        store.put_file(f"{name}/{file}", folder / file)
    store.put(f"{name}/{WHOLE}", whole)
    return sum(sizes.values())


def take(store: CheckpointStore, name: str, target: Path) -> int | None:
    """Bring the folder of this name to `target`, which is not there yet; its bytes, None where there is none.

    Raises StoreError, and then leaves nothing."""
    try:
        sizes = _sizes(store.get(f"{name}/{WHOLE}"))
    except NotInStore:
        return None
    arriving = target.with_name(f"{target.name}.tmp-taken")  # as whoever makes an entry calls what is not whole
    shutil.rmtree(arriving, ignore_errors=True)
    try:
        for file, size in sizes.items():
            path = arriving / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as handle:
                for data in ranges(store, f"{name}/{file}", 0, size):
                    handle.write(data)
        arriving.rename(target)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return sum(sizes.values())


def _sizes(whole: bytes) -> dict[str, int]:
    """Raises StoreError for a list that is none, or names a file elsewhere."""
    try:
        sizes = {str(file): int(size) for file, size in json.loads(whole).items()}
    except (ValueError, TypeError, AttributeError):
        raise StoreError(f"{WHOLE} cannot be read") from None
    for file in sizes:
        if file.startswith("/") or any(part in ("", ".", "..") for part in file.split("/")):
            raise StoreError(f"{WHOLE} names {file[:100]!r}, which is no file below a folder")
    return sizes
