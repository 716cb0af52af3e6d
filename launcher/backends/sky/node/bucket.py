"""A run's records and its model in the job's bucket, where nodes share no folder. Runs on the node.

    python bucket.py restore|save|publish RUN_DIR URL

Owns the names below URL: run/ (what the relay reads), model/; checkpoints/ is the trainer's. Uses the trainer's own
stores, so it reaches what the trainer reaches, with the same credentials. Exit codes are the trainer's: 75 for a store that
does not answer now, 64 for one that refuses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

JOURNAL, ATTEMPTS, MODEL = "journal", "attempts", "model"
RECORDS = (JOURNAL, "nodes.jsonl", "events.jsonl", "metrics.jsonl", "log.txt", "log.times", "outcome.json")
MARK = "node-0"
"""In an attempt's folder: the first node has begun it."""
ATTEMPT = "attempt"
"""Number of the last attempt that began; a new node counts on from it."""
RESTORED = ".restored"
"""In a run folder that holds what earlier nodes left; without it nothing is written to the bucket's run/."""


def restore(run_dir: Path, store: Any) -> None:
    """What earlier nodes left, into a run folder that has none of it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    there = store.list("run/")
    for name in RECORDS:
        if f"run/{name}" in there and not (run_dir / name).exists():
            arriving = run_dir / f"{name}.new"
            arriving.write_bytes(store.get(f"run/{name}"))
            os.replace(arriving, run_dir / name)
    if f"run/{ATTEMPT}" in there:
        number = store.get(f"run/{ATTEMPT}").decode(errors="replace").strip()
        if not (
            number.isascii() and number.isdecimal() and len(number) < 7
        ):  # whoever writes to the bucket names no path
            raise ValueError(f"run/{ATTEMPT} of the bucket holds {number[:40]!r}, which is no number")
        begun = run_dir / ATTEMPTS / number
        begun.mkdir(parents=True, exist_ok=True)
        (begun / MARK).touch()
    (run_dir / RESTORED).touch()


def save(run_dir: Path, store: Any) -> None:
    """The records as they are now. The journal's name first: lines without it could not be put in their place.

    Raises ValueError for a run folder that never took over what was there."""
    if not (run_dir / RESTORED).exists():
        raise ValueError(f"{run_dir} does not hold what earlier nodes left; nothing was written over")
    for name in RECORDS:
        if (run_dir / name).exists():
            store.put(f"run/{name}", (run_dir / name).read_bytes())
    begun = [int(path.parent.name) for path in run_dir.glob(f"{ATTEMPTS}/*/{MARK}") if path.parent.name.isdecimal()]
    if begun:
        store.put(f"run/{ATTEMPT}", str(max(begun)).encode())


def publish(run_dir: Path, store: Any) -> None:
    """The exported model, the weights before the configuration that makes it a model."""
    model = run_dir / MODEL
    files = sorted((path for path in model.rglob("*") if path.is_file()), key=lambda path: path.suffix == ".json")
    for path in files:
        store.put_file(f"{MODEL}/{path.relative_to(model).as_posix()}", path)


def main() -> int:
    from trainer.run.exits import BadInput, ExitCode
    from trainer.run.stores.base import StoreError, StoreRefused
    from trainer.run.stores.opening import open_store

    action, run_dir, url = sys.argv[1:]
    try:
        {"restore": restore, "save": save, "publish": publish}[action](Path(run_dir), open_store(url))
    except Exception as error:  # one line: the relay's reader sees no traceback
        print(f"dolphin: {action} of the run's records: {' '.join(str(error).split())[:400]}", flush=True)
        if isinstance(error, (BadInput, StoreRefused, ValueError)):
            return ExitCode.BAD_INPUT
        return ExitCode.PREEMPTED if isinstance(error, StoreError) else ExitCode.FAILED
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
