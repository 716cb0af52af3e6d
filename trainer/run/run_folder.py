"""The run folder: the names of its files, and the two append-only records every backend reads.

The one contract between the node and the laptop. Owns names and line formats; refuses to know who reads them. Every
line of a .jsonl file is one JSON object, written with one append, so that a reader sees whole lines. What a node runs that
ships without this package repeats what it needs of it (launcher/backends/sky/node), held against this by a test.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from trainer.run.redaction import redact

JOB_FILE = "job.yaml"
"""The job as it was launched."""
AXOLOTL_FILE = "axolotl.yml"
"""What the job was made from, where that was an axolotl configuration."""
TRAIN_FILE = "train.json"
"""NodeJob: what the node is told."""
LOG_FILE = "log.txt"
"""Everything that the trainer prints."""
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
SAMPLES_FILE = "samples.jsonl"
"""A line for each question at each evaluation (SAMPLE_FIELDS); after a resume one may stand there twice, with the same words."""
SAMPLE_FIELDS = ("step", "number", "set", "question", "expected", "answer", "num_tokens", "ended", "scores")
"""Steps done; which question, from 0; the validation set that it is from, or `prompts`; the answer that is known, or null; tokens of
the model's answer, and whether it ended it itself; scores of `evaluate.metrics`."""
OUTCOME_FILE = "outcome.json"
"""How the last start of the trainer ended; there is none while one runs."""
SPENT_FILE = "spent.json"
"""What a run with a deadline or a budget has cost so far: time, usd (null where no price is known), step_s (null at first)."""
DATA_REPORT_FILE = "data_report.json"
PREPARED_FILE = "prepared.json"
"""Where the prepared data is."""
CHECKPOINTS_FOLDER = "checkpoints"
MODEL_FOLDER = "model"
ATTEMPTS_FOLDER = "attempts"
"""A folder for each attempt, by its number: why ranks ended, heartbeats, stacks, and a mark of each node that began it."""

NODES_FILE = "nodes.jsonl"
"""A line for each node that took the run over, where the backend has nodes (NODE_FIELDS)."""
JOURNAL_FILE = "journal"
"""A name for the folder's contents: lines that nodes without a folder in common wrote are put in order by it."""
LOG_TIMES_FILE = "log.times"
"""Now and then the number of a line of the log and when it was written."""
NODE_FIELDS = ("time", "node", "infra", "setup_at", "managed_job", "submission")
"""Of a line of nodes.jsonl: start of the run's first process there, host name, where as SkyPilot writes it, start of the
node's first command, SkyPilot's job id, and which submit of the run it was (from 1). Times in seconds since the epoch."""
NODE_PRICE_FIELDS = ("spot", "zone", "zone_id", "instance_type", "price_usd_per_hour", "is_exact_price")
"""Of the same line, as far as the node's cloud tells: spot or not, its zone by name and by id, its type, US dollars per hour of all
nodes by the launch's offers, and whether that is the price of this very place."""

STOP_FILE = "STOP"
"""In a run folder: whoever writes it asks the run to save and stop."""
SAVE_FILE = "SAVE"
"""In a run folder: whoever writes it asks the run for a save; it goes on."""


class Phase(StrEnum):
    """What the node is busy with, in order."""

    PULLING_IMAGE = "pulling image"
    PREPARING_DATA = "preparing data"
    STARTING_RANKS = "starting ranks"
    LOADING_MODEL = "loading model"
    RESTORING = "restoring checkpoint"
    TRAINING = "training"
    EXPORTING = "exporting"
    FINISHING = "finishing the model"
    DONE = "done"


class EventKind(StrEnum):
    """`event` of a line of events.jsonl; the fields that come with it are named behind each."""

    ATTEMPT_STARTED = "attempt_started"  # attempt, nproc, device, pid, began (when this start of the trainer did)
    PHASE = "phase"  # phase
    PLAN = "plan"  # total_steps, steps_per_epoch, sequences, conversations, tokens, trained_tokens, parameters, trained_parameters
    RESUMED = "resumed"  # step, total_steps, checkpoint, store, lost_steps, lost_seconds
    CHECKPOINT_REFUSED = "checkpoint_refused"  # checkpoint, reason
    CHECKPOINT_SAVED = "checkpoint_saved"  # step, checkpoint, size_bytes, blocked_seconds, seconds
    EVALUATED = (
        "evaluated"  # step, epoch, eval_loss (null where nothing is held out), measures (name -> value), is_best
    )
    STOPPED_EARLY = "stopped_early"  # step, metric, best, best_step, evaluations, steps_left, seconds_left
    STOP_REQUESTED = "stop_requested"  # reason, step
    PREEMPTED = "preempted"  # step, reason
    RESTARTING = "restarting"  # reason, restarts
    LIMIT_NEAR = "limit_near"  # limit (budget, deadline), of (US dollars; seconds since the epoch), reason
    NOTIFIED = "notified"  # hook (its number in the job), of (time of the event that was told), posted (or given up)
    EXPORTED = "exported"  # model, step (of its weights), sample (question, answer, expected; null where there is none)
    AFTERWARDS = "afterwards"  # what (of that which a job asks of its exported model), ok, detail
    FINISHED = "finished"  # exit_code, reason


class RunDir:
    """Paths of a run folder, and its appenders. `attempt` is stamped on every event once it is known."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.job = self.path / JOB_FILE
        self.axolotl = self.path / AXOLOTL_FILE
        self.train_json = self.path / TRAIN_FILE
        self.log = self.path / LOG_FILE
        self.metrics = self.path / METRICS_FILE
        self.events = self.path / EVENTS_FILE
        self.samples = self.path / SAMPLES_FILE
        self.outcome = self.path / OUTCOME_FILE
        self.data_report = self.path / DATA_REPORT_FILE
        self.prepared = self.path / PREPARED_FILE
        self.checkpoints = self.path / CHECKPOINTS_FOLDER
        self.model = self.path / MODEL_FOLDER
        self.attempts = self.path / ATTEMPTS_FOLDER
        self.nodes = self.path / NODES_FILE

    def attempt_dir(self, attempt: int) -> Path:
        """Folder of one attempt: `rank-N.json` (why a rank ended), `heartbeat`, stack traces."""
        return self.attempts / str(attempt)

    def attempts_begun(self, node: int) -> list[int]:
        """Numbers of the attempts that a node has begun here."""
        begun = self.attempts.glob(f"*/{node_mark(node)}")
        return [int(path.parent.name) for path in begun if path.parent.name.isdecimal()]

    def emit(self, event: EventKind, *, attempt: int, **fields: Any) -> None:
        """Append one event. Called by one process at a time: the supervisor, or rank 0 under it."""
        append_line(self.events, {"time": time.time(), "event": event.value, "attempt": attempt, **fields})

    def read_events(self) -> list[dict[str, Any]]:
        return list(read_lines(self.events))

    def read_outcome(self) -> dict[str, Any] | None:
        """What the last start of the trainer said at its end; None where it said nothing, yet or at all."""
        try:
            outcome = json.loads(self.outcome.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return outcome if isinstance(outcome, dict) else None

    def read_metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl as written: a step that was trained again after a resume appears once for each attempt."""
        return list(read_lines(self.metrics))


def node_mark(node: int) -> str:
    """Empty file in an attempt's folder: this node has begun it."""
    return f"node-{node}"


def append_line(path: Path, record: dict[str, Any]) -> bool:
    """Append `record` as one line with one write, so that no reader sees half of it; without values of secrets.

    False where it cannot be written: a record that is lost on a full disk is no reason to end what it tells of.
    """
    line = redact(json.dumps(record, ensure_ascii=False, allow_nan=True)) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            data = line.encode(errors="replace")
            written = os.write(descriptor, data)
            if written < len(
                data
            ):  # the disk took a part: readers pass over a line that is torn, and the next one is whole
                with contextlib.suppress(OSError):
                    os.write(descriptor, b"\n")
            return written == len(data)
        finally:
            os.close(descriptor)
    except OSError:
        return False


def end_torn_line(path: Path) -> None:
    """End a line that a killed writer left without its end, so that the next one is whole. Before the first append."""
    if path.exists() and path.stat().st_size:
        with contextlib.suppress(OSError), open(path, "rb+") as handle:
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                handle.write(b"\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects, a line each; none where there is no such file. What is no object (a line that a killed writer tore, or
    somebody else's) is left out: nothing that stands in a record may end the run that it tells of."""
    try:
        text = path.read_bytes()
    except OSError:
        return
    for line in text.split(b"\n"):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are not there, for this user alone: data, models' answers and logs lie in it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write under a temporary name, flush to disk, rename: a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", errors="replace") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error  # a write that finds no room names no file
