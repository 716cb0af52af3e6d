"""A run's records and its model in the job's bucket, where nodes share no folder. Runs on the node.

    python bucket.py restore|keep|publish|finish RUN_DIR URL

Owns the names below URL: run/ (what the relay reads), model/; checkpoints/ is the trainer's. Uses the trainer's own
stores, so it reaches what the trainer reaches, with the same credentials. Exit codes are the trainer's: 75 for a store that
does not answer now, 64 for one that refuses; and TAKEN.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

JOURNAL, ATTEMPTS, MODEL, OUTCOME = "journal", "attempts", "model", "outcome.json"
RECORDS = (
    JOURNAL, "nodes.jsonl", "events.jsonl", "metrics.jsonl", "samples.jsonl", "log.txt", "log.times", "progress.json", OUTCOME
)  # fmt: skip
GROWING = RECORDS[1:-2]
TAILS = "tails.json"
"""What the growing records have beyond their last upload: a few seconds' lines, in one small object."""
STOP = "STOP"
REQUESTS = (STOP, "SAVE")
"""Files that ask something of the trainer in its run folder, and objects that ask it from home."""
STOPPED = ".stopped-from-home"
"""In a run folder: its end is for good, and no node is to go on from it by itself."""
MARK = "node-0"
"""In an attempt's folder: the first node has begun it."""
ATTEMPT = "attempt"
"""Number of the last attempt that began; a new node counts on from it."""
RESTORED = ".restored"
"""In a run folder that holds what earlier nodes left; without it nothing is written to the bucket's run/."""


SAVE_EVERY_S = 30.0
LOOK_EVERY_S = 3.0
"""A node that is taken away loses at most so much of its records, and no step."""
TAIL_BYTES = 1 << 18
"""A larger tail is no small object any more: the records go whole."""
WATCHED_S = 600.0
"""Whoever asked for something reads here what became of it: for so long the records go at every look."""
TAKEN = 73
"""Exit code: another node writes this run now, or home stopped it."""


def restore(run_dir: Path, store: Any) -> None:
    """What earlier nodes left, into a run folder that has none of it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    there = store.list("run/")
    missing = [name for name in RECORDS if not (run_dir / name).exists()]
    for name in missing:
        if f"run/{name}" in there:
            arriving = run_dir / f"{name}.new"
            arriving.write_bytes(store.get(f"run/{name}"))
            os.replace(arriving, run_dir / name)
    if JOURNAL in missing and f"run/{TAILS}" in there:
        _add_tails(run_dir, set(missing), store.get(f"run/{TAILS}"))
    for name in REQUESTS:  # asked of an earlier node
        if f"run/{name}" in there:
            store.delete(f"run/{name}")
    if f"run/{ATTEMPT}" in there:
        number = store.get(f"run/{ATTEMPT}").decode(errors="replace").strip()
        if not (
            number.isascii() and number.isdecimal() and len(number) < 7
        ):  # whoever writes to the bucket names no path
            raise ValueError(f"run/{ATTEMPT} of the bucket holds {number[:40]!r}, which is no number")
        begun = run_dir / ATTEMPTS / number
        begun.mkdir(parents=True, exist_ok=True)
        (begun / MARK).touch()
    (run_dir / STOPPED).unlink(missing_ok=True)
    (run_dir / RESTORED).touch()


def _add_tails(run_dir: Path, names: set[str], text: bytes) -> None:
    """To records that were taken over, or were not there yet. Tails of another journal are of a node that another one had replaced; tails that
    make no sense are none, for they hold seconds at most."""
    try:
        said = json.loads(text)
        if said[JOURNAL] != (run_dir / JOURNAL).read_text():
            return
        tails = {
            name: (int(at), words.encode("utf-8", "surrogateescape")) for name, (at, words) in said["tails"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    for name in names.intersection(GROWING).intersection(tails):
        at, data = tails[name]
        with open(run_dir / name, "ab") as handle:
            have = handle.tell() - at  # a part of the tail may have gone whole since
            if 0 <= have < len(data):
                handle.write(data[have:])


def _begin(run_dir: Path, store: Any, lease: Any) -> None:
    """Take the run, and over what there is of it; where that fails the next node need not wait."""
    if lease is not None:
        lease.take()
    try:
        restore(run_dir, store)
    except BaseException:
        if lease is not None:
            lease.release()
        raise


def save(run_dir: Path, store: Any, sent: dict[str, tuple[int, int]] | None = None) -> None:
    """The records as they are now. The journal's name first: lines without it could not be put in their place. `sent` knows
    size and time of what was sent before, which is not sent again.

    Raises ValueError for a run folder that never took over what was there."""
    if not (run_dir / RESTORED).exists():
        raise ValueError(f"{run_dir} does not hold what earlier nodes left; nothing was written over")
    sent = {} if sent is None else sent
    for name in RECORDS:
        if name == OUTCOME and not (run_dir / name).exists() and sent.get(name) != (0, 0):
            store.delete(f"run/{name}")  # of an earlier start; this one has yet to end
            sent[name] = (0, 0)
        if (run_dir / name).exists():
            status = (run_dir / name).stat()
            state = (status.st_size, status.st_mtime_ns)
            if sent.get(name) != state:
                data = (run_dir / name).read_bytes()
                store.put(f"run/{name}", data)
                sent[name] = state if name not in GROWING else (len(data), status.st_mtime_ns)
    begun = attempt_of(run_dir)
    if begun and sent.get(ATTEMPT) != (begun, 0):
        store.put(f"run/{ATTEMPT}", str(begun).encode())
        sent[ATTEMPT] = (begun, 0)


def send_tails(run_dir: Path, store: Any, sent: dict[str, tuple[int, int]]) -> bool:
    """What the growing records have beyond what `save` sent, where there is more than at the last call. False where that is too much."""
    tails = {}
    for name in GROWING:
        path = run_dir / name
        at = sent.get(name, (0, 0))[0]
        if path.exists() and path.stat().st_size > at:
            with open(path, "rb") as handle:
                handle.seek(at)
                tails[name] = (at, handle.read(TAIL_BYTES + 1))
    size = sum(len(data) for _, data in tails.values())
    if size > TAIL_BYTES:
        return False
    state = (sum(at for at, _ in tails.values()), size)
    if tails and sent.get(TAILS) != state:
        words = {name: (at, data.decode("utf-8", "surrogateescape")) for name, (at, data) in tails.items()}
        text = json.dumps({JOURNAL: (run_dir / JOURNAL).read_text(), "tails": words})
        store.put(f"run/{TAILS}", text.encode())
        sent[TAILS] = state
    return True


def keep(run_dir: Path, store: Any, lease: Any) -> None:
    """Until SIGTERM: renew the lease and save now and then, and hand on what is asked of the run from home."""
    sent: dict[str, tuple[int, int]] = {}
    saved_at, asked_at = -SAVE_EVERY_S, -WATCHED_S
    while not _told_to_end.is_set():
        try:
            now = time.monotonic()
            if _take_requests(run_dir, store):
                asked_at = now
            is_due = now - saved_at >= SAVE_EVERY_S or now - asked_at < WATCHED_S
            if is_due or not send_tails(run_dir, store, sent):
                if lease is not None:
                    lease.renew(attempt_of(run_dir))
                save(run_dir, store, sent)
                saved_at = now
        except Exception as error:
            if not _passes(error):
                raise
        _told_to_end.wait(LOOK_EVERY_S)


def finish(run_dir: Path, store: Any, lease: Any) -> int:
    """The last words of this node; the next one may begin. TAKEN where home does not want one."""
    if lease is not None:
        lease.check()
    save(run_dir, store)
    if lease is not None:
        lease.release()
    return TAKEN if (run_dir / STOPPED).exists() else 0


def publish(run_dir: Path, store: Any, lease: Any) -> None:
    """The exported model, the weights before the configuration that makes it a model."""
    model = run_dir / MODEL
    files = sorted((path for path in model.rglob("*") if path.is_file()), key=lambda path: path.suffix == ".json")
    for path in files:
        if lease is not None:
            lease.renew(attempt_of(run_dir))
        store.put_file(f"{MODEL}/{path.relative_to(model).as_posix()}", path)


def attempt_of(run_dir: Path) -> int:
    """The newest attempt that this node has begun or taken over; 0 before the first."""
    marks = run_dir.glob(f"{ATTEMPTS}/*/{MARK}")
    return max((int(path.parent.name) for path in marks if path.parent.name.isdecimal()), default=0)


def _take_requests(run_dir: Path, store: Any) -> bool:
    """Make the files that home asked for, once each; whether there was one."""
    there = store.list("run/")
    asked = [name for name in REQUESTS if f"run/{name}" in there]
    for name in asked:
        (run_dir / name).touch()
        if name == STOP:
            (run_dir / STOPPED).touch()
        store.delete(f"run/{name}")
    return bool(asked)


def _passes(error: Exception) -> bool:
    """Whether the store may do it the next time."""
    from trainer.run.stores.base import StoreError, StoreRefused
    from trainer.run.stores.lease import HeldElsewhere

    return isinstance(error, StoreError) and not isinstance(error, (StoreRefused, HeldElsewhere))


_told_to_end = threading.Event()


def main() -> int:
    from trainer.run.exits import BadInput, ExitCode
    from trainer.run.stores.base import StoreError, StoreRefused
    from trainer.run.stores.lease import HOLDER_VARIABLE, HeldElsewhere, Lease
    from trainer.run.stores.opening import open_store

    action, place, url = sys.argv[1:]
    run_dir = Path(place)
    if action == "keep":
        signal.signal(signal.SIGTERM, lambda number, stack: _told_to_end.set())
    try:
        store: Any = open_store(url)
        lease = None
        if not store.is_local:
            lease = Lease(store, url.rpartition("/")[2], socket.gethostname(), os.environ[HOLDER_VARIABLE])
        if action == "restore":
            _begin(run_dir, store, lease)
        else:
            return {"keep": keep, "finish": finish, "publish": publish}[action](run_dir, store, lease) or 0
    except Exception as error:  # one line: the relay's reader sees no traceback
        print(f"dolphin: {action} of the run's records: {' '.join(str(error).split())[:400]}", flush=True)
        if isinstance(error, HeldElsewhere):
            return TAKEN
        if isinstance(error, (BadInput, StoreRefused, ValueError)):
            return ExitCode.BAD_INPUT
        return ExitCode.PREEMPTED if isinstance(error, StoreError) else ExitCode.FAILED
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
