"""The run folder: the names of its files, and the two append-only records every backend reads.

The one contract between the node and the laptop. Owns names and line formats; refuses to know who reads them. Every
line of events.jsonl and metrics.jsonl is one JSON object, written with one append, so that a reader sees whole lines.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

STOP_FILE = "STOP"
"""In a run folder: whoever writes it asks the run to save and stop."""
SAVE_FILE = "SAVE"
"""In a run folder: whoever writes it asks the run for a save; it goes on."""


class Phase(StrEnum):
    """What the node is busy with, in order."""

    PREPARING_DATA = "preparing data"
    STARTING_RANKS = "starting ranks"
    LOADING_MODEL = "loading model"
    RESTORING = "restoring checkpoint"
    TRAINING = "training"
    EXPORTING = "exporting"
    DONE = "done"


class EventKind(StrEnum):
    """`event` of a line of events.jsonl; the fields that come with it are named behind each."""

    ATTEMPT_STARTED = "attempt_started"  # attempt, nproc, device, pid
    PHASE = "phase"  # phase
    PLAN = "plan"  # total_steps, steps_per_epoch, sequences, conversations, tokens, trained_tokens, parameters, trained_parameters
    RESUMED = "resumed"  # step, total_steps, checkpoint, store, lost_steps, lost_seconds
    CHECKPOINT_REFUSED = "checkpoint_refused"  # checkpoint, reason
    CHECKPOINT_SAVED = "checkpoint_saved"  # step, checkpoint, size_bytes, blocked_seconds, seconds
    EVALUATED = "evaluated"  # step, epoch, eval_loss
    STOP_REQUESTED = "stop_requested"  # reason, step
    PREEMPTED = "preempted"  # step, reason
    RESTARTING = "restarting"  # reason, restarts
    EXPORTED = "exported"  # model, sample (question, answer, expected; null where there is none)
    FINISHED = "finished"  # exit_code, reason


class RunDir:
    """Paths of a run folder, and its appenders. `attempt` is stamped on every event once it is known."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.job = self.path / "job.yaml"
        self.train_json = self.path / "train.json"
        self.log = self.path / "log.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.outcome = self.path / "outcome.json"
        self.data_report = self.path / "data_report.json"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.attempts = self.path / "attempts"

    def attempt_dir(self, attempt: int) -> Path:
        """Folder of one attempt: `rank-N.json` (why a rank ended), `heartbeat`, stack traces."""
        return self.attempts / str(attempt)

    def emit(self, event: EventKind, *, attempt: int, **fields: Any) -> None:
        """Append one event. Called by one process at a time: the supervisor, or rank 0 under it."""
        append_line(self.events, {"time": time.time(), "event": event.value, "attempt": attempt, **fields})

    def read_events(self) -> list[dict[str, Any]]:
        return list(read_lines(self.events))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl as written: a step that was trained again after a resume appears once for each attempt."""
        return list(read_lines(self.metrics))


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append `record` as one line with one write, so that no reader sees half of it."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=True) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def end_torn_line(path: Path) -> None:
    """End a line that a killed writer left without its end, so that the next one is whole. Before the first append."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as handle:
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                handle.write(b"\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole JSON lines of `path`; none where it does not exist. A torn last line (a killed writer) is left out."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return
    for line in text.split(b"\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def write_atomic(path: Path, text: str) -> None:
    """Write under a temporary name, flush to disk, rename: a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
