"""A base model of the hub in the job's bucket: downloaded by the first node, taken from the bucket by every later one.

It is kept by its commit, with the files that transformers loads a causal model from. What cannot be kept or taken is left to
the loading, which asks the hub as it would without this. Owns where the hub's own cache expects the files.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from trainer.data.kept import PATIENCE_S, bucket_of
from trainer.run.spec import NodeJob
from trainer.run.stores.base import CheckpointStore, StoreError
from trainer.run.stores.kept_folder import publish, take
from trainer.run.stores.opening import open_store

WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
FILES = re.compile(r"[^/]+\.(json|txt|jinja|model|py)")
"""Beside the weights: configuration, tokenizer, templates, code."""


def bring_base(job: NodeJob, say: Callable[[str], None]) -> None:
    """Have the base in this node's cache of the hub, and in the bucket for the next node."""
    url, base = bucket_of(job), job.spec.model.base
    if url is None or base.startswith("/"):
        return
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if HF_HUB_OFFLINE:
        return
    revision = job.spec.model.revision or "main"
    try:
        info = HfApi().model_info(base, revision=revision)
        names = [one.rfilename for one in info.siblings or () if WEIGHTS.fullmatch(one.rfilename) or FILES.fullmatch(one.rfilename)]  # fmt: skip
        weights = [name for name in names if WEIGHTS.fullmatch(name)]
        if info.sha is None or not weights:
            return
        store = open_store(url, retry_s=PATIENCE_S)
        cache = Path(HF_HUB_CACHE) / f"models--{base.replace('/', '--')}"
        folder, kept = cache / "snapshots" / info.sha, f"cache/models/{base.replace('/', '--')}/{info.sha}"
        if not all((folder / name).exists() for name in weights):
            if _take(store, kept, folder, say):
                (cache / "refs").mkdir(parents=True, exist_ok=True)
                (cache / "refs" / revision.replace("/", "_")).write_text(info.sha)
                return
            snapshot_download(base, revision=info.sha, allow_patterns=names)
        _publish(store, kept, folder, names, say)
    except (HfHubHTTPError, HFValidationError, OSError) as error:  # the loading meets it again, and says what to do
        say(f"the base is not kept in the bucket: {' '.join(str(error).split())[:200]}")


def _take(store: CheckpointStore, name: str, folder: Path, say: Callable[[str], None]) -> bool:
    """Whether the bucket had it. What the cache has already (a tokenizer) stays."""
    began, arriving = time.monotonic(), folder.with_name(f"{folder.name}.kept")
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.parent.mkdir(parents=True, exist_ok=True)
    try:
        size = take(store, name, arriving)
        if size is None:
            return False
        folder.mkdir(exist_ok=True)
        for path in arriving.iterdir():
            if not (folder / path.name).exists():
                os.replace(path, folder / path.name)
    except StoreError as error:
        say(f"the base could not be taken from the bucket ({error}); it is downloaded")
        return False
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    say(f"base model taken from the bucket: {size / 1e9:,.2f} GB in {time.monotonic() - began:.1f} s")
    return True


def _publish(store: CheckpointStore, name: str, folder: Path, names: list[str], say: Callable[[str], None]) -> None:
    began = time.monotonic()
    try:
        size = publish(store, name, folder, sorted(file for file in names if (folder / file).exists()))
    except StoreError as error:
        say(f"the base could not be kept in the bucket ({error}); a later node downloads it again")
        return
    if size:
        say(f"base model kept in the bucket: {size / 1e9:,.2f} GB in {time.monotonic() - began:.1f} s")
