"""What makes a run whose bucket is all that is left a run of this machine again: its job, kept beside its records.

Owns the three files of home in the bucket. What comes back from there is a stranger's word until it was checked.
"""

from __future__ import annotations

import json
import os
from typing import Any

from launcher.backends.base import BACKENDS
from launcher.backends.sky.store_access import (
    PROBE_VARIABLE,
    environment_of_run,
    environment_sent,
    open_at_home,
    write_environment,
)
from launcher.runs import ledger
from launcher.runs.errors import BackendError, BadUsage
from launcher.runs.ledger import RunRecord
from trainer.run.exits import BadInput
from trainer.run.run_folder import JOB_FILE, TRAIN_FILE, write_atomic
from trainer.run.spec import NodeJob
from trainer.run.stores.base import CheckpointStore, NotInStore, StoreError

FIELDS = ("run_id", "name", "backend", "created_at", "nproc", "device", "options", "secret_names", "submissions")
"""Of a run's record: what is as true on another laptop."""
_MOST_BYTES = 4 << 20


def keep(record: RunRecord, train: NodeJob) -> None:
    """Put job.yaml, train.json and what the record says into the run's bucket, where it has one. BackendError where that fails."""
    if "://" not in train.store or os.environ.get(PROBE_VARIABLE) == "off":
        return
    store = open_at_home(train.store, environment_of_run(record.folder))
    facts = {name: getattr(record, name) for name in FIELDS}
    try:
        store.put(f"run/{JOB_FILE}", record.files.job.read_bytes())
        store.put(f"run/{TRAIN_FILE}", record.files.train_json.read_bytes())
        store.put(f"run/{ledger.RECORD_FILE}", json.dumps(facts, indent=2).encode())
    except (StoreError, BadInput) as error:
        raise BackendError(f"{train.store}: the job cannot be kept there: {error}") from None


def adopt(url: str) -> RunRecord:
    """Make the run at this URL one of this machine. BadUsage where there is none, or where it is one already."""
    url = url.rstrip("/")
    if "://" not in url:
        raise BadUsage(f"{url}: is no bucket; name it as s3://bucket/prefix/RUN or gs://bucket/prefix/RUN")
    store = open_at_home(url, os.environ)
    try:
        facts, job, train = (_read(store, name) for name in (ledger.RECORD_FILE, JOB_FILE, TRAIN_FILE))
    except NotInStore as error:
        raise BadUsage(f"{url}: is no run that was started with this version of dolphin ({error})") from None
    except (StoreError, BadInput) as error:
        raise BackendError(str(error)) from None
    fields = _checked(url, facts, train)
    run_id, name, backend = (fields.pop(key) for key in ("run_id", "name", "backend"))
    try:
        record = ledger.create(run_id, name, backend)
    except FileExistsError:
        raise BadUsage(f"{run_id}: is a run of this machine already; `dolphin status {run_id}`") from None
    write_atomic(record.files.job, job.decode(errors="replace"))
    write_atomic(record.files.train_json, train.decode(errors="replace"))
    write_environment(record.folder, environment_sent([url], os.environ))
    # With a handle, for it was started; without a number, for a SkyPilot knows it by its name at most.
    return ledger.update(record, **fields, handle={"kind": "managed", "job_id": None})


def _read(store: CheckpointStore, name: str) -> bytes:
    return store.get_range(f"run/{name}", 0, _MOST_BYTES)


def _checked(url: str, facts: bytes, train: bytes) -> dict[str, Any]:
    """The record's fields; BadUsage for a run of another name than its place, or of a backend that there is not."""
    try:
        found = json.loads(facts)
        fields = {name: found[name] for name in FIELDS}
        fields["secret_names"] = tuple(str(name) for name in fields["secret_names"])
        run_id, name = str(fields["run_id"]), str(fields["name"])
        there = NodeJob.model_validate_json(train)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadUsage(f"{url}: its records cannot be read ({type(error).__name__})") from None
    if not ledger.is_id_of(run_id, name) or run_id != url.rpartition("/")[2] or fields["backend"] not in BACKENDS:
        raise BadUsage(f"{url}: its records are of another run ({run_id[:80]})")
    if there.store != url:
        raise BadUsage(f"{url}: the run keeps its checkpoints at {there.store[:200]}; adopt it from there")
    return fields
