"""From a URL or a folder to the store that it names, and whether that can be used."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from trainer.run.exits import BadInput, StoreGone
from trainer.run.stores.base import PROBE, CheckpointStore, FolderStore, NotInStore, StoreAway, StoreError, StoreRefused


def open_store(
    url: str, *, environment: Mapping[str, str] | None = None, retry_s: float | None = None
) -> CheckpointStore:
    """The store at a folder, s3://bucket/prefix or gs://bucket/prefix. Touches nothing yet. Raises BadInput.

    `environment` says where and as whom (this process's where not given), `retry_s` how long an outage is waited through."""
    if "://" not in url:
        return FolderStore(Path(url))
    if "@" in urlsplit(url).netloc:
        raise BadInput("checkpoint.store holds a user or a password; the clouds' own variables carry credentials")
    from trainer.run.stores.object_store import ObjectStore

    return ObjectStore(url, environment=environment, retry_s=retry_s)


def probe(store: CheckpointStore, *, is_first: bool = True) -> None:
    """Write, read and delete a small object: what is wrong with the store shows before anything is paid for.

    Raises BadInput with the reason; StoreGone for one that will pass where the run has been there before (not `is_first`).
    """
    name, word = f"{PROBE}{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        if is_first and isinstance(store, FolderStore):
            store.refuse_read_only()
        store.put(name, word)
        if store.get(name) != word:
            raise StoreError("what was written reads back differently")
        store.delete(name)
    except StoreError as error:
        may_pass = isinstance(error, StoreAway) or not (store.is_local or isinstance(error, (StoreRefused, NotInStore)))
        if may_pass and not is_first:
            raise StoreGone(f"checkpoint.store {store.url} does not answer: {error}") from error
        reason = str(error)
        if not store.is_local and (isinstance(error, NotInStore) or reason.endswith("there is no such bucket")):
            reason = "there is no such bucket"
        raise BadInput(
            f"checkpoint.store {store.url}: {reason}. No checkpoint could be kept there: check the address, the "
            "credentials and their rights to write, read and delete"
        ) from error
