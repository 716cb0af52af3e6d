"""ObjectStore: S3 and what speaks its language (R2, MinIO, ...), and Google Cloud Storage, through obstore.

obstore is the Rust object_store library: it signs, retries 5xx, dropped connections and timeouts with backoff, and
uploads in parallel parts. Owns its configuration and the translation of its errors; credentials, region and endpoint
come from the environment variables that the clouds' own tools read (AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, GenericError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import GCSStore, S3Store

from trainer.run.exits import BadInput
from trainer.run.stores.base import NotInStore, StoreError

PART_BYTES = 16 << 20
NUM_PARALLEL_PARTS = 8
"""A rank's parts in flight: with eight ranks a gigabyte of memory at most, and more than a node's network takes."""
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST")
"""Where one of them names http://, TLS is not asked for (MinIO on a private network, an emulator)."""
RETRY_VARIABLE, RETRY_S = "DOLPHIN_STORE_RETRY_S", 180.0
"""How long one request is tried again before the store is given up."""
REQUEST_VARIABLE, REQUEST_S = "DOLPHIN_STORE_REQUEST_S", 60.0
"""How long one request may take: a part of 16 MiB at 0.3 MB/s."""


class ObjectStore:
    """A bucket, below a prefix."""

    is_local = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(url)
        retry_s = float(os.environ.get(RETRY_VARIABLE, RETRY_S))
        request_s = float(os.environ.get(REQUEST_VARIABLE, REQUEST_S))
        options: dict[str, Any] = {
            "prefix": parts.path.strip("/") or None,
            "client_options": {
                "connect_timeout": timedelta(seconds=min(10.0, request_s)),
                "timeout": timedelta(seconds=request_s),
                "allow_http": any(os.environ.get(name, "").startswith("http://") for name in ENDPOINT_VARIABLES),
            },
            "retry_config": {"max_retries": 20, "retry_timeout": timedelta(seconds=retry_s)},
        }
        try:
            if parts.scheme == "s3":
                self._store: Any = S3Store(parts.netloc, **_endpoint(), **options)
            elif parts.scheme == "gs":
                self._store = GCSStore(parts.netloc, **_emulator(), **options)
            else:
                raise BadInput(
                    f"checkpoint.store {url}: unknown scheme {parts.scheme}://; use a folder, s3:// or gs://"
                )
        except BaseError as error:
            raise BadInput(f"checkpoint.store {url}: {_reason(error)}") from error

    def list(self, prefix: str = "") -> dict[str, int]:
        with _explained(self.url):
            batches = obstore.list(self._store, prefix or None)
            return {entry["path"]: entry["size"] for batch in batches for entry in batch}

    def entries(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """What the store says of each object below `prefix`: size, e_tag."""
        with _explained(self.url):
            batches = obstore.list(self._store, prefix or None)
            return {entry["path"]: dict(entry) for batch in batches for entry in batch}

    def open(self, name: str) -> Any:
        """A file to read from, which fetches as it goes."""
        with _explained(f"{self.url}/{name}"):
            return obstore.open_reader(self._store, name)

    def get(self, name: str) -> bytes:
        with _explained(f"{self.url}/{name}"):
            return bytes(obstore.get(self._store, name).bytes())

    def get_range(self, name: str, start: int, length: int) -> bytes:
        with _explained(f"{self.url}/{name}"):
            return bytes(obstore.get_range(self._store, name, start=start, length=length))

    def put(self, name: str, data: bytes) -> None:
        with _explained(f"{self.url}/{name}"):
            obstore.put(self._store, name, data, use_multipart=False)

    def put_file(self, name: str, path: Path) -> None:
        with _explained(f"{self.url}/{name}"):
            obstore.put(self._store, name, path, chunk_size=PART_BYTES, max_concurrency=NUM_PARALLEL_PARTS)

    def delete(self, name: str) -> None:
        with contextlib.suppress(NotInStore), _explained(f"{self.url}/{name}"):
            obstore.delete(self._store, name)


def _endpoint() -> dict[str, Any]:
    """obstore reads AWS_ENDPOINT_URL by itself, and not the form for S3 alone that Amazon's own tools prefer."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3")
    return {"endpoint": endpoint} if endpoint else {}


def _emulator() -> dict[str, Any]:
    """STORAGE_EMULATOR_HOST, which Google's own clients know, is spoken to without credentials."""
    address = os.environ.get("STORAGE_EMULATOR_HOST")
    if not address:
        return {}
    key = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    return {"service_account_key": json.dumps(key), "skip_signature": True}


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        raise NotInStore(f"there is no {what}") from error
    except (BaseError, OSError) as error:
        raise StoreError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line for a person from an error of many, with nothing of a key in it."""
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return "the store refuses these credentials"
    text = " ".join(str(error).split())
    if isinstance(error, GenericError) and "InstanceMetadata" in text:
        return "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where the node has a role"
    return text[:400]
