"""ObjectStore: S3 and what speaks its language (R2, MinIO, ...), and Google Cloud Storage, through obstore.

obstore is the Rust object_store library: it signs, retries 5xx, dropped connections and timeouts with backoff, and
uploads in parallel parts. Owns its configuration and the translation of its errors; credentials, region and endpoint
are found as the clouds' own tools find them (`aws`; GOOGLE_APPLICATION_CREDENTIALS).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, S3Store

from trainer.run.exits import BadInput
from trainer.run.stores import aws
from trainer.run.stores.base import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    Answer,
    Changed,
    NotInStore,
    StoreAway,
    StoreRefused,
    persistently,
    seconds_to_retry,
)

PART_BYTES = 16 << 20
NUM_PARALLEL_PARTS = 8
"""A rank's parts in flight: with eight ranks a gigabyte of memory at most, and more than a node's network takes."""
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
NO_BUCKET = "there is no such bucket"
REQUEST_VARIABLE, REQUEST_S = "DOLPHIN_STORE_REQUEST_S", 60.0
"""How long one request may take: a part of 16 MiB at 0.3 MB/s."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was at one moment."""

    data: bytes
    written_at: float
    """By the store's clock, in whole seconds since the epoch."""
    version: dict[str, str]
    """The store's own words for this state of it."""


class ObjectStore:
    """A bucket, below a prefix."""

    is_local = False

    def __init__(self, url: str, *, environment: Mapping[str, str] | None = None, retry_s: float | None = None) -> None:
        """`environment` is this process's where not given. Nothing is asked yet. Raises BadInput for another scheme."""
        self.url = url.rstrip("/")
        self._parts = urlsplit(url)
        self._environment = os.environ if environment is None else environment
        self._retry_s = seconds_to_retry() if retry_s is None else retry_s
        if self._parts.scheme not in ("s3", "gs"):
            raise BadInput(
                f"checkpoint.store {url}: unknown scheme {self._parts.scheme}://; use a folder, s3:// or gs://"
            )

    @functools.cached_property
    def _store(self) -> Any:
        """Made at the first request: an instance may have to be asked for its role, and the store for its region."""
        bucket, environment = self._parts.netloc, self._environment
        request_s = float(os.environ.get(REQUEST_VARIABLE, REQUEST_S))
        is_s3 = self._parts.scheme == "s3"
        address = aws.endpoint(environment) if is_s3 else environment.get(EMULATOR_VARIABLE)
        options: dict[str, Any] = {
            "prefix": self._parts.path.strip("/") or None,
            "client_options": {
                "connect_timeout": timedelta(seconds=min(10.0, request_s)),
                "timeout": timedelta(seconds=request_s),
                "allow_http": (address or "").startswith("http://"),  # a private network's MinIO, an emulator
            },
            "retry_config": {
                "max_retries": 20,
                "retry_timeout": timedelta(seconds=self._retry_s),
                "backoff": {
                    "init_backoff": timedelta(seconds=FIRST_PAUSE_S),
                    "max_backoff": timedelta(seconds=LONGEST_PAUSE_S),
                },
            },
        }
        try:
            if is_s3:
                options |= {"region": aws.region(bucket, environment), "credential_provider": aws.provider(environment)}
                if address:
                    options["endpoint"] = address
                return S3Store(bucket, **options)
            return GCSStore(bucket, **_emulator(address), **options)
        except StoreRefused as error:
            raise StoreRefused(f"{self.url}: {error}") from None
        except BaseError as error:
            raise BadInput(f"checkpoint.store {self.url}: {_reason(error)[0]}") from error

    def list(self, prefix: str = "") -> dict[str, int]:
        return {name: entry["size"] for name, entry in self.entries(prefix).items()}

    def entries(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """What the store says of each object below `prefix`: size, e_tag."""

        def ask() -> dict[str, dict[str, Any]]:
            batches = obstore.list(self._store, prefix or None)
            return {entry["path"]: dict(entry) for batch in batches for entry in batch}

        return self._whole(self.url, ask)

    def open(self, name: str) -> Any:
        """A file to read from, which fetches as it goes."""
        return self._whole(f"{self.url}/{name}", lambda: obstore.open_reader(self._store, name))

    def get(self, name: str) -> bytes:
        return self._whole(f"{self.url}/{name}", lambda: bytes(obstore.get(self._store, name).bytes()))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        def ask() -> bytes:
            return bytes(obstore.get_range(self._store, name, start=start, length=length))

        return self._whole(f"{self.url}/{name}", ask)

    def put(self, name: str, data: bytes) -> None:
        self._whole(f"{self.url}/{name}", lambda: obstore.put(self._store, name, data, use_multipart=False))

    def look(self, name: str) -> Seen:
        """An object with its version. Raises NotInStore."""

        def ask() -> Seen:
            answer = obstore.get(self._store, name)
            meta = answer.meta
            said = {"e_tag": meta.get("e_tag"), "version": meta.get("version")}
            version = {name: word for name, word in said.items() if word is not None}
            return Seen(bytes(answer.bytes()), meta["last_modified"].timestamp(), version)

        return self._whole(f"{self.url}/{name}", ask)

    def put_over(self, name: str, data: bytes, before: Seen | None) -> None:
        """Put the object in place of what was seen, or of nothing; Changed where something else is there by now."""

        def ask() -> None:
            mode: Any = "create" if before is None else before.version
            try:
                obstore.put(self._store, name, data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError, NotFoundError):
                try:
                    found = self.get(name)
                except NotInStore:
                    found = None
                if found != data:  # else it was written, and the answer was lost
                    raise Changed(f"{self.url}/{name}: was written by somebody else") from None

        self._whole(f"{self.url}/{name}", ask)

    def put_file(self, name: str, path: Path) -> None:
        def ask() -> None:
            obstore.put(self._store, name, path, chunk_size=PART_BYTES, max_concurrency=NUM_PARALLEL_PARTS)

        self._whole(f"{self.url}/{name}", ask)

    def delete(self, name: str) -> None:
        with contextlib.suppress(NotInStore):
            self._whole(f"{self.url}/{name}", lambda: obstore.delete(self._store, name))

    def _whole(self, what: str, ask: Callable[[], Answer]) -> Answer:
        """The library repeats a request whose answer is an error, and gives up at one that is cut off in its middle."""

        def explained() -> Answer:
            try:
                return ask()
            except (BaseError, OSError) as error:
                if isinstance(error, (NotFoundError, FileNotFoundError)) and "NoSuchBucket" not in str(error):
                    raise NotInStore(f"there is no {what}") from error
                reason, is_final = _reason(error)
                raise (StoreRefused if is_final else StoreAway)(f"{what}: {reason}") from error

        return persistently(explained, self._retry_s)


def _emulator(address: str | None) -> dict[str, Any]:
    """STORAGE_EMULATOR_HOST, which Google's own clients know, is spoken to without credentials."""
    if not address:
        return {}
    key = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    return {"service_account_key": json.dumps(key), "skip_signature": True}


def _reason(error: Exception) -> tuple[str, bool]:
    """One line for a person from an error of many, with nothing of a key in it; and whether asking again is in vain."""
    text = " ".join(str(error).split())
    if any(word in text for word in ("ExpiredToken", "TokenRefreshRequired", "RequestExpired")):
        return "the token of these credentials has expired; renew it and `dolphin resume`", True
    if "NoSuchBucket" in text:
        return NO_BUCKET, True
    is_denied = any(word in text for word in ("AccessDenied", "403 Forbidden"))  # of a listing it says no more
    if is_denied or isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return "the store refuses these credentials", True
    return text[:400], False
