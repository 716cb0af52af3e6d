"""From a URL or a folder to the store that it names, and whether that can be used."""

from __future__ import annotations

import uuid
from pathlib import Path

from trainer.run.exits import BadInput
from trainer.run.stores.base import PROBE, CheckpointStore, FolderStore, NotInStore, StoreError


def open_store(url: str) -> CheckpointStore:
    """The store at a folder, s3://bucket/prefix or gs://bucket/prefix. Touches nothing yet. Raises BadInput."""
    if "://" not in url:
        return FolderStore(Path(url))
    from trainer.run.stores.object_store import ObjectStore

    return ObjectStore(url)


def probe(store: CheckpointStore) -> None:
    """Write, read and delete a small object: what is wrong with the store shows before anything is paid for.

    Raises BadInput with the reason.
    """
    name, word = f"{PROBE}{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        store.put(name, word)
        if store.get(name) != word:
            raise StoreError("what was written reads back differently")
        store.delete(name)
    except StoreError as error:
        reason = "there is no such bucket" if isinstance(error, NotInStore) and not store.is_local else str(error)
        raise BadInput(
            f"checkpoint.store {store.url}: {reason}. No checkpoint could be kept there: check the address, the "
            "credentials and their rights to write, read and delete"
        ) from error
