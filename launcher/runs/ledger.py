"""The ledger: one folder a run under DOLPHIN_HOME, written before anything is submitted.

Owns run ids, record.json and the lock that keeps two commands off the same run. Refuses to know backends' handles
(it keeps them), states and secrets' values: nothing here is secret.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.runs.errors import BadUsage, LauncherError, full_disk
from launcher.runs.states import EndReason
from trainer.run.run_folder import RunDir, make_private, write_atomic

RECORD_FILE = "record.json"
LOCK_FILE = ".lock"
PLAN_FILE = "plan.json"
"""In a run's folder: what its newest start was planned to take, where there was a plan (LaunchPlan.to_json)."""
REQUEST_FILE = "sky-request"
"""In a run's folder: the request by which somebody else takes a start in, from the moment on that it is sent."""
RESULTS = ("model", "checkpoints")
"""Of a run folder, what `forget` leaves."""
_ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_MAX_NAME_IN_ID = 40
"""Keeps a run id within the 63 characters that labels of Kubernetes and clouds allow."""
_HASH_LETTERS = 6
_RECORDS_BYTES = 65_536
"""More than job, train.json and record of a run take."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the launcher knows of a run. record.json without `folder`."""

    run_id: str
    folder: Path
    name: str
    """Name of the job."""
    backend: str
    created_at: float
    """Seconds since the epoch."""
    nproc: int | None = None
    device: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Of the backend, from the command line, as JSON values; a resume uses them again."""
    secret_names: tuple[str, ...] = ()
    handle: dict[str, Any] | None = None
    """The backend's; None until its submit returned."""
    submissions: int = 0
    """Starts by the launcher, counted before each submit."""
    submitted_at: float | None = None
    """When the newest submit returned."""
    down_requested_at: float | None = None
    """When `dolphin down` was asked for, since the newest submit."""
    submit_error: dict[str, str] | None = None
    """Why the newest submit failed: `reason` (an EndReason) and `message`."""
    launcher_version: str = ""

    @property
    def files(self) -> RunDir:
        return RunDir(self.folder)


def home() -> Path:
    """DOLPHIN_HOME, or ~/.dolphin. BadUsage where neither names a folder: a user without a home, a folder that was removed."""
    stated = os.environ.get("DOLPHIN_HOME")
    folder = os.path.expanduser(stated or "~/.dolphin")
    if folder.startswith("~"):
        what = (
            f"DOLPHIN_HOME: {stated} names nobody's folder" if stated else f"user {os.getuid()} has no home folder here"
        )
        raise BadUsage(f"{what}; set DOLPHIN_HOME to a folder of yours")
    try:
        return Path(folder).absolute()
    except FileNotFoundError:
        raise BadUsage(
            f"DOLPHIN_HOME: {stated} is relative to a working folder that was removed; name an absolute one"
        ) from None


def runs_dir() -> Path:
    return home() / "runs"


def cache_dir() -> Path:
    return home() / "cache"


def checked_data(name: str) -> RunDir:
    """What `dolphin data` left for the job of this name, in a folder laid out as a run's."""
    return RunDir(cache_dir() / "data-checks" / name)


def new_id(name: str) -> str:
    """A run id for a job of this name; taken only once `create` made its folder."""
    stamp = time.strftime("%y%m%d-%H%M%S", time.gmtime())
    tail = "".join(secrets.choice(_ID_LETTERS) for _ in range(4))
    return f"{name_in_id(name)}-{stamp}-{tail}"


def name_in_id(name: str) -> str:
    """What a run id begins with: the name of its job, or of a long one its beginning and a hash of all of it, so that two names
    that begin alike stay two."""
    if len(name) <= _MAX_NAME_IN_ID:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_LETTERS]
    return f"{name[: _MAX_NAME_IN_ID - _HASH_LETTERS - 1].rstrip('-')}-{digest}"


def is_id_of(run_id: str, name: str) -> bool:
    """Whether `new_id` may have made the id for a job of this name."""
    return re.fullmatch(re.escape(name_in_id(name)) + rf"-\d{{6}}-\d{{6}}-[{_ID_LETTERS}]{{4}}", run_id) is not None


def folder_of(run_id: str) -> Path:
    return runs_dir() / run_id


def create(run_id: str, name: str, backend: str, **fields: Any) -> RunRecord:
    """Make the run's folder and record. FileExistsError where the id is taken, by whoever launches at this moment."""
    folder = folder_of(run_id)
    try:
        make_private(runs_dir())
        folder.mkdir(mode=0o700)
        record = RunRecord(run_id, folder, name, backend, time.time(), **fields)
        _write(record)
    except FileExistsError as error:
        if error.filename == str(folder):
            raise
        raise _unwritable(error) from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)  # a run without a record would be in the way of nobody but a reader
        raise _unwritable(error) from None
    return record


def check_writable() -> None:
    """Write some kilobytes where a run's folder would be, and take them away again. LauncherError where that cannot be."""
    existing = next(path for path in (runs_dir(), *runs_dir().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(_RECORDS_BYTES))
            file.flush()
    except OSError as error:
        raise _unwritable(error) from None


def _unwritable(error: OSError) -> LauncherError:
    full = full_disk(error, runs_dir())
    return LauncherError(
        f"{full}, or set DOLPHIN_HOME to a larger one"
        if full
        else f"{error.filename or runs_dir()}: cannot write the run's folder ({error.strerror}); "
        "set DOLPHIN_HOME to a folder of yours"
    )


def keep_plan(record: RunRecord, plan: dict[str, Any]) -> None:
    """Beside the record, so that what a run took can be held against what was planned. Raises OSError."""
    write_atomic(record.folder / PLAN_FILE, json.dumps(plan, ensure_ascii=False) + "\n")


def update(record: RunRecord, **changes: Any) -> RunRecord:
    """Change fields of the record on disk (which another command may have changed since) and return it as it is now."""
    changed = dataclasses.replace(load(record.folder), **changes)
    _write(changed)
    return changed


def load(folder: Path) -> RunRecord:
    """The record of a run folder; LauncherError where it cannot be read."""
    path = folder / RECORD_FILE
    try:
        values = json.loads(path.read_bytes())
        known = {f.name for f in dataclasses.fields(RunRecord)} - {"folder"}
        values = {key: value for key, value in values.items() if key in known}
        values["secret_names"] = tuple(values.get("secret_names", ()))
        record = RunRecord(folder=folder, **values)
        _check(record)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LauncherError(f"{path}: cannot read the run's record ({error})") from None
    return record


def _check(record: RunRecord) -> None:
    """Raises ValueError for a field of another kind: what reads the record trusts it."""
    kinds: dict[str, Any] = {
        "run_id": str, "name": str, "backend": str, "created_at": int | float, "nproc": int | None, "device": str | None,
        "options": dict, "handle": dict | None, "submissions": int, "submitted_at": int | float | None,
        "down_requested_at": int | float | None, "submit_error": dict | None,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(getattr(record, name), kind):
            raise ValueError(f"{name} is {str(getattr(record, name))[:40]!r}")
    error = record.submit_error
    if error is not None and not (error.get("reason") in set(EndReason) and isinstance(error.get("message"), str)):
        raise ValueError("submit_error says no reason")


def forget(record: RunRecord) -> list[Path]:
    """Take the run out of the ledger: its record first, then all that is no result. Returns the results that stay."""
    kept = [record.folder / name for name in RESULTS if _holds_anything(record.folder / name)]
    try:
        (record.folder / RECORD_FILE).unlink()
        for path in record.folder.iterdir():
            if path in kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if not kept:
            record.folder.rmdir()
    except OSError as error:
        raise LauncherError(
            f"{record.run_id}: cannot remove {error.filename or record.folder} ({error.strerror}); remove the folder by hand"
        ) from None
    return kept


def _holds_anything(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def all_runs() -> list[RunRecord]:
    """Every run, newest first. A folder with no readable record (a launch that died while making it) is left out."""
    records = []
    for path in runs_dir().glob(f"*/{RECORD_FILE}"):
        with contextlib.suppress(LauncherError):
            records.append(load(path.parent))
    return sorted(records, key=lambda record: (record.created_at, record.run_id), reverse=True)


def unreadable_runs() -> list[str]:
    """Run ids of folders whose record is there and cannot be read."""
    found = []
    for path in sorted(runs_dir().glob(f"*/{RECORD_FILE}")):
        try:
            load(path.parent)
        except LauncherError:
            found.append(path.parent.name)
    return found


def without_record(run: str) -> str | None:
    """The run id of the one folder whose name is `run`, or begins so, and which has no record that can be read."""
    try:
        names = [path.name for path in runs_dir().iterdir() if path.name.startswith(run)]
    except OSError:
        return None
    readable = {record.run_id for record in all_runs()}
    matches = [name for name in names if name == run] or [name for name in names if name not in readable]
    return matches[0] if len(matches) == 1 else None


def find(run: str | None = None) -> RunRecord:
    """The run of this id or unique beginning of an id; the newest where `run` is None. BadUsage where there is none."""
    if run is not None and (runs_dir() / run / RECORD_FILE).is_file() and "/" not in run:
        return load(runs_dir() / run)
    records = all_runs()
    if not records:
        raise BadUsage(f"there is no run in {runs_dir()}; `dolphin launch job.yaml` makes one")
    if run is None:
        return records[0]
    matches = [record for record in records if run and record.run_id.startswith(run)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        shown = ", ".join(record.run_id for record in matches[:4])
        raise BadUsage(f"{run}: {len(matches)} runs begin so ({shown}{', ...' if len(matches) > 4 else ''}); say more")
    near = difflib.get_close_matches(run, [record.run_id for record in records], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "`dolphin status --all` lists them"
    raise BadUsage(f"{run}: there is no such run; {hint}")


@contextlib.contextmanager
def locked(record: RunRecord, *, wait_s: float = 2.0) -> Iterator[RunRecord]:
    """Hold the run while starting or stopping it; yields the record as it is now. The lock goes with the process that
    holds it. LauncherError where another command holds it for longer than `wait_s`."""
    descriptor = os.open(record.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise LauncherError(
                    f"{record.run_id}: another dolphin command is starting or stopping this run; try again when it is done"
                )
            time.sleep(0.1)
        yield load(record.folder)
    finally:
        os.close(descriptor)


def is_locked(record: RunRecord) -> bool:
    """Whether a command is starting or stopping the run at this moment."""
    try:
        descriptor = os.open(record.folder / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # there is none, or none that anybody could hold
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _write(record: RunRecord) -> None:
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "folder"}
    write_atomic(record.folder / RECORD_FILE, json.dumps(values, indent=2) + "\n")
