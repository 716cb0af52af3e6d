"""What a run left in its bucket, brought home. The names below the URL are `node.bucket`'s."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launcher.runs.copying import arriving
from launcher.runs.errors import BackendError
from trainer.run.exits import BadInput
from trainer.run.stores.base import StoreError
from trainer.run.stores.opening import open_store


def copy_prefix(url: str, target: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Everything below the URL as the folder `target`, whole or not at all. BackendError where there is nothing."""
    with arriving(target, url) as partial:
        try:
            store = open_store(url, environment=environment)
            names = store.list()
            if not names:
                raise BackendError(f"{url}: holds nothing; nothing was copied")
            for name in names:
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(store.get(name))
        except ImportError:
            raise BackendError(f"{url}: reading a bucket needs obstore; pip install obstore") from None
        except (StoreError, BadInput) as error:
            raise BackendError(f"{url}: cannot be copied to {target}: {error}") from None
    return target.absolute()
