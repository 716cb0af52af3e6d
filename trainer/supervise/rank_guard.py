"""How a rank begins and ends: `rank_guard` around everything it does, and `rank-R.json`, its last words.

torchrun exits with 1 whatever happened, so every rank writes why it ended, and the supervisor decides from those files.
Owns the mapping from an error to a kind of end. Refuses to know torch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from trainer.run.exits import (
    EXIT_CODES,
    LIMITS,
    BadInput,
    EndKind,
    ExitCode,
    LimitReached,
    NoContact,
    Preempted,
    StoreGone,
    TrainingFailed,
)
from trainer.run.redaction import redact
from trainer.run.run_folder import RunDir, write_atomic
from trainer.supervise import disk
from trainer.supervise.heartbeat import Heartbeat
from trainer.supervise.stop_flag import StopFlag

TRACEBACK_LINES = 30
PEER_LOSS = re.compile(
    r"gloo/transport.*(closed|reset|refused|broken pipe|timed out)|NCCL (communicator|watchdog)|ncclRemoteError"
    r"|communicator was aborted|remote process exited|DistNetworkError",
    re.IGNORECASE | re.DOTALL,
)
"""Errors of a rank that lost another one, from gloo and NCCL; never a cause of their own."""
LEFT_AT_ONCE = "LeftAtOnce"
"""`error` of a rank that left on a second signal, without a save."""
NO_CONTACT = NoContact.__name__
"""`error` of a rank that could not reach the others when they started."""
STORE_GONE = StoreGone.__name__
"""`error` of a rank that cannot reach the checkpoint store; the others then fail of its absence."""


@dataclass(frozen=True, slots=True)
class RankEnd:
    """The last words of a rank."""

    kind: EndKind
    message: str
    step: int
    error: str
    """Name of the exception's type; empty where there was none."""
    final: bool
    """A restart would not help (TrainingFailed: the trainer itself decided to stop)."""
    stop_reason: str | None
    traceback_tail: list[str]
    time: float


@dataclass(frozen=True, slots=True)
class Rank:
    """What a rank has in hand while it works."""

    stop: StopFlag
    heartbeat: Heartbeat
    give_up: Callable[[BaseException], None]
    """Say why and leave, from any thread, where the one that works cannot be reached any more. Does not return."""


def rank_file(attempt_dir: Path, rank: int) -> Path:
    return attempt_dir / f"rank-{rank}.json"


def stack_file(attempt_dir: Path, rank: int) -> Path:
    """Where a rank writes the stacks of its threads on SIGUSR1."""
    return attempt_dir / f"stack-{rank}.txt"


def report_rank_end(attempt_dir: Path, rank: int, end: RankEnd) -> None:
    """Write the rank's last words. The first ones stand: what follows an error is not its cause."""
    path = rank_file(attempt_dir, rank)
    if path.exists():
        return
    text = redact(json.dumps(asdict(end)))
    try:
        write_atomic(path, text)
    except OSError as error:  # a full disk must not hide why the rank ended
        print(
            f"rank {rank}: {end.kind.value}: {end.message} (and its report could not be written: {error})", flush=True
        )


def read_rank_end(attempt_dir: Path, rank: int) -> RankEnd | None:
    try:
        record = json.loads(rank_file(attempt_dir, rank).read_bytes())
        return RankEnd(**{**record, "kind": EndKind(record["kind"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return None  # not what a rank writes


@contextmanager
def rank_guard(run_dir: str | Path, attempt: int, rank: int) -> Iterator[Rank]:
    """Around all that a rank does, before torch is imported; leaves with SystemExit unless the body ended well.

    Takes SIGTERM and SIGINT, writes stacks on SIGUSR1, keeps the heartbeat, and turns the error that ended the body
    into `rank-R.json` and the exit code of its kind.
    Under torchrun a rank that stopped in order exits 0: torchrun would send SIGTERM to the ranks that still write their part.
    """
    attempt_dir = RunDir(run_dir).attempt_dir(attempt)
    heartbeat = Heartbeat(attempt_dir, rank)

    def leave_at_once(reason: str) -> None:
        end = _end(EndKind.PREEMPTED, reason, heartbeat, stop, None)
        report_rank_end(attempt_dir, rank, replace(end, error=LEFT_AT_ONCE))
        os._exit(ExitCode.PREEMPTED)

    def give_up(error: BaseException) -> None:
        report_rank_end(attempt_dir, rank, _end(_kind_of(error), _one_line(error), heartbeat, stop, error))
        print(f"rank {rank} gives up at step {heartbeat.steps_done}: {_one_line(error)}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_CODES[_kind_of(error)])

    stop = StopFlag(run_dir, attempt, rank, leave_at_once=leave_at_once)
    stop.install()
    stacks: TextIO
    try:
        stacks = open(stack_file(attempt_dir, rank), "w")  # noqa: SIM115  (faulthandler writes to it until the end)
    except OSError:  # on a full disk the stacks go into the log
        stacks = sys.stderr
    faulthandler.enable(all_threads=True)  # a library that aborts leaves its stacks in the log
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    try:
        yield Rank(stop, heartbeat, give_up)
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            message = f"left with exit code {leaving.code}"
            report_rank_end(attempt_dir, rank, _end(EndKind.FAILED, message, heartbeat, stop, leaving))
        else:
            report_rank_end(attempt_dir, rank, _end(EndKind.DONE, "", heartbeat, stop, None))
        raise
    except BaseException as error:
        kind = _kind_of(error)
        report_rank_end(attempt_dir, rank, _end(kind, _one_line(error), heartbeat, stop, error))
        if kind is EndKind.FAILED and not isinstance(error, TrainingFailed):
            if disk.is_full(error):
                print(f"rank {rank} failed at step {heartbeat.steps_done}: {_one_line(error)}", file=sys.stderr)
            elif PEER_LOSS.search(str(error)):
                said = _one_line(error)[:200]
                print(f"rank {rank} lost another rank at step {heartbeat.steps_done} ({said})", file=sys.stderr)
            else:
                print(f"rank {rank} failed at step {heartbeat.steps_done}:", file=sys.stderr)
                traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        is_orderly = kind is EndKind.PREEMPTED or kind in LIMITS
        code = ExitCode.DONE if is_orderly and under_torchrun else EXIT_CODES[kind]
        raise SystemExit(int(code)) from error
    else:
        report_rank_end(attempt_dir, rank, _end(EndKind.DONE, "", heartbeat, stop, None))


def _kind_of(error: BaseException) -> EndKind:
    if isinstance(error, BadInput):
        return EndKind.BAD_INPUT
    if isinstance(error, Preempted):
        return EndKind.PREEMPTED
    if isinstance(error, LimitReached):
        return error.kind
    return EndKind.FAILED


def _end(kind: EndKind, message: str, heartbeat: Heartbeat, stop: StopFlag, error: BaseException | None) -> RankEnd:
    requested = stop.requested
    tail = traceback.format_exception(error)[-TRACEBACK_LINES:] if error is not None else []
    return RankEnd(
        kind=kind,
        message=message,
        step=heartbeat.steps_done,
        error=type(error).__name__ if error is not None else "",
        final=isinstance(error, TrainingFailed) or disk.is_full(error),
        stop_reason=requested.reason if requested is not None else None,
        traceback_tail=tail,
        time=time.time(),
    )


def _one_line(error: BaseException) -> str:
    """The error's message as one line, with its type where the message alone would not tell."""
    text = " ".join(str(error).split())[:2000]
    if disk.is_full(error):
        return disk.explain(error)
    if isinstance(error, (BadInput, LimitReached, Preempted, TrainingFailed)):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
