"""What a run left in its bucket, brought home. Owns the copying; the names below the URL are `node.bucket`'s."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from launcher.runs.errors import BackendError
from trainer.run.exits import BadInput
from trainer.run.stores.base import StoreError
from trainer.run.stores.opening import open_store


def copy_prefix(url: str, target: Path) -> Path:
    """Everything below the URL as the folder `target`, whole or not at all. BackendError where there is nothing."""
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackendError(f"{target}: is not an empty folder; name another one")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        store = open_store(url)
        names = store.list()
        if not names:
            raise BackendError(f"{url}: holds nothing; nothing was copied")
        for name in names:
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(name))
        os.replace(partial, target)
    except ImportError:
        raise BackendError(f"{url}: reading a bucket needs obstore; pip install obstore") from None
    except (StoreError, BadInput, OSError) as error:
        raise BackendError(f"{url}: cannot be copied to {target}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
