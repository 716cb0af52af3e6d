"""Prepared data in the job's bucket: made on the first node, taken by every later one, of this run or of another.

An entry's name is its cache key, a hash over all that decides its content, and its files carry checksums. A bucket that fails
costs the time to make it, never the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from trainer.run.spec import NodeJob
from trainer.run.stores.base import CheckpointStore, StoreError
from trainer.run.stores.kept_folder import publish, take
from trainer.run.stores.opening import open_store

PATIENCE_S = 30.0
"""The bucket is waited for so long; what it would give can be made."""


def bucket_of(job: NodeJob) -> str | None:
    """Where what later nodes need is kept; None where nodes share a folder, and for data that are looked at without a run."""
    url = job.spec.checkpoint.store or ""
    return url if "://" in url and os.environ.get("DOLPHIN_RUN_ID") else None


class KeptEntry:
    """One entry in the bucket, where there is one."""

    def __init__(self, job: NodeJob, key: str, say: Callable[[str], None]) -> None:
        url, self._name, self._say = bucket_of(job), f"cache/data/{key}", say
        self._has_been_tried = False
        self._store: CheckpointStore | None = None if url is None else open_store(url, retry_s=PATIENCE_S)

    def take(self, entry: Path) -> None:
        """Bring it to the cache, where there is one."""
        if self._store is None:
            return
        began, self._has_been_tried = time.monotonic(), True
        try:
            size = take(self._store, self._name, entry)
        except StoreError as error:
            self._say(f"prepared data could not be taken from the bucket ({error}); it is made here")
            return
        if size is not None:
            self._say(f"prepared data taken from the bucket: {size / 1e6:,.1f} MB in {time.monotonic() - began:.1f} s")

    def publish(self, entry: Path) -> None:
        """Keep it for later nodes, in place of what was there and was not good."""
        if self._store is None:
            return
        began = time.monotonic()
        try:
            names = sorted(path.name for path in entry.iterdir())
            size = publish(self._store, self._name, entry, names, is_anew=self._has_been_tried)
        except StoreError as error:
            self._say(f"prepared data could not be kept in the bucket ({error}); a later node makes it again")
            return
        if size:
            self._say(f"prepared data kept in the bucket: {size / 1e6:,.1f} MB in {time.monotonic() - began:.1f} s")
