"""The container's entry on every backend: `python -m trainer.supervise TRAIN_JSON`.

Prepares the data, runs attempts under torchrun, restarts after a crash, and turns what the ranks say into outcome.json
and an exit code (trainer.run.exits). Owns the count of attempts and the decision to restart; works as PID 1. Refuses to know torch, clouds and what a step is.

Environment: DOLPHIN_GRACE_S, seconds between a signal and the end, where the backend knows; DOLPHIN_HANG_FLOOR_S (600),
the shortest silence that counts as a hang; DOLPHIN_NOTICES and the metadata addresses (`spot_notices`); DOLPHIN_NUM_NODES,
DOLPHIN_NODE_RANK, DOLPHIN_MASTER_ADDR and DOLPHIN_MASTER_PORT for more than one node.

A second signal ends everything at once. It is then preempted where starting again loses only steps (there is a
checkpoint to resume from, or nothing was trained yet), and failed where trained steps would be lost without a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from trainer.run import python, secret_file
from trainer.run.exits import EXIT_CODES, BadInput, EndKind, ExitCode, TrainingFailed
from trainer.run.packages import require_all
from trainer.run.run_folder import SAVE_FILE, STOP_FILE, EventKind, Phase, RunDir, end_torn_line, node_mark
from trainer.run.spec import NodeJob, has_more_to_do
from trainer.supervise import disk, limits, log, parent_death, spot_notices
from trainer.supervise.agent import Torchrun
from trainer.supervise.attempt import Attempt, Nodes, Program, Stopping, rank_environment, whole_number
from trainer.supervise.hooks import Hooks
from trainer.supervise.log import say
from trainer.supervise.outcome import Ended, PastEvents, write_outcome
from trainer.supervise.signals import Wake, kill_descendants
from trainer.supervise.stop_flag import StopRequest
from trainer.supervise.verdict import AttemptEnd, death, judge

NO_P2P = "NCCL_P2P_DISABLE"
FINISH = "trainer.finished.steps"
"""What does the rest once the model is there."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.supervise", description=__doc__.splitlines()[0])
    parser.add_argument("train_json", type=Path)
    parser.add_argument("--main", default="trainer.rank.main", metavar="MODULE", help="what each rank runs")
    parser.add_argument(
        "--prepare", default="trainer.data.prepare", metavar="MODULE", help="what prepares the data; `none` for nothing"
    )
    arguments = parser.parse_args(argv)
    try:
        secret_file.take(os.environ)
        job = read_job(arguments.train_json)
        require_all(job.spec)
        nodes = Nodes.from_environment(os.environ)
        supervisor = Supervisor(job, arguments.train_json.resolve(), nodes, arguments.main, arguments.prepare)
    except (BadInput, TrainingFailed) as error:
        log.write(str(error))
        return ExitCode.BAD_INPUT if isinstance(error, BadInput) else ExitCode.FAILED
    return supervisor.run()


def read_job(path: Path) -> NodeJob:
    """Raises BadInput, in one line, for a file that is missing, unreadable or not a NodeJob."""
    try:
        return NodeJob.read(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; it is written by the launcher") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(f"{path}: {where}: {first['msg']}; write it again with the launcher") from error


class Supervisor:
    """One start of the trainer on this node. Raises TrainingFailed where another supervisor works in the run folder."""

    def __init__(self, job: NodeJob, train_json: Path, nodes: Nodes, main: str, prepare: str) -> None:
        self._job, self._train_json, self._nodes = job, train_json, nodes
        self._main, self._prepare = main, prepare
        self._began = time.time()
        self._grace_s = whole_number(os.environ, "DOLPHIN_GRACE_S", 0)
        whole_number(os.environ, "DOLPHIN_HANG_FLOOR_S", 0)
        self._run_dir = RunDir(job.run_dir)
        self._run_dir.attempts.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        end_torn_line(self._run_dir.events)
        self._run_dir.outcome.unlink(missing_ok=True)
        (self._run_dir.path / STOP_FILE).unlink(missing_ok=True)  # what was asked of an earlier start
        (self._run_dir.path / SAVE_FILE).unlink(missing_ok=True)
        disk.reserve(self._run_dir.path)
        parent_death.adopt_orphans()
        self._wake = Wake()
        self._past = PastEvents(self._run_dir)
        self._watch: limits.Watch | None = None
        self._stopping = Stopping(self._wake, self._run_dir, self._look_at_limits)
        self._hooks = Hooks(job, self._past, os.environ, say) if nodes.rank == 0 else None
        self._restarts = 0
        self._stop_said = False
        self._attempt = 0
        self._early: Torchrun | None = None
        """Waits for the first attempt."""

    def run(self) -> int:
        """Everything, to the exit code. Only node 0 writes events and the outcome, and tells people."""
        if self._hooks is not None:
            self._hooks.start()
        try:
            end = self._work()
            if end.kind is EndKind.DONE and has_more_to_do(self._job.spec) and self._nodes.rank == 0:
                end = self._finish_model(self._attempt, end)
        except OSError as error:  # a folder of an attempt that cannot be made
            end = AttemptEnd(EndKind.FAILED, f"{error.filename or self._run_dir.path}: {error.strerror}", 0)
        return self._finish(self._attempt, end)

    def _work(self) -> AttemptEnd:
        """The preparation, and attempts until one is the last. Raises OSError."""
        attempt = self._begin_attempt()
        threading.Thread(target=self._watch_notices, name="notices", daemon=True).start()
        end = self._prepare_data(attempt)
        previous: AttemptEnd | None = None
        while end is None:
            end = self._run_attempt(attempt)
            if end.kind is not EndKind.FAILED or self._stopping.reason is not None:
                break
            if self._goes_on_without_p2p(end, attempt):
                previous, end = end, None
                attempt = self._begin_attempt()
                continue
            stop = self._why_no_restart(end, previous)
            if stop is not None:
                end = AttemptEnd(EndKind.FAILED, f"{end.reason}{stop}", end.step)
                break
            self._restarts += 1
            say(
                f"attempt {attempt} failed at step {end.step}: {end.reason}; restart {self._restarts} of "
                f"{self._job.spec.checkpoint.max_restarts} from the last checkpoint"
            )
            self._emit(EventKind.RESTARTING, attempt, reason=end.reason, restarts=self._restarts)
            previous, end = end, None
            attempt = self._begin_attempt()
        return end

    def _full_disk(self) -> str | None:
        store = self._job.checkpoint_store
        local = [] if "://" in store else [store]
        return disk.full([self._run_dir.path, self._job.cache_dir, *local, tempfile.gettempdir()])

    def _run_attempt(self, number: int) -> AttemptEnd:
        self._emit(EventKind.PHASE, number, phase=Phase.STARTING_RANKS.value)
        say(f"attempt {number}: starting {self._job.nproc} ranks on {self._job.device}")
        program = Program(self._main, self._train_json)
        attempt = Attempt(self._job, program, number, self._nodes, self._stopping, self._on_stop)
        early, self._early = self._early, None
        return judge(attempt.run(early))

    def _goes_on_without_p2p(self, end: AttemptEnd, attempt: int) -> bool:
        """Once, where the ranks did not reach each other: on some machines without NVLink the GPUs cannot write into each other's
        memory though they say so, and NCCL waits for what does not arrive. No restart of those that the job allows."""
        if not end.no_contact or NO_P2P in os.environ:
            return False
        os.environ[NO_P2P] = "1"
        say(
            f"attempt {attempt}: {end.reason}; once more with {NO_P2P}=1, through host memory: slower, but it works where GPUs "
            "cannot write into each other's memory"
        )
        self._emit(EventKind.RESTARTING, attempt, reason=end.reason, restarts=self._restarts)
        return True

    def _why_no_restart(self, end: AttemptEnd, previous: AttemptEnd | None) -> str | None:
        """The reason to stop instead, to be put behind the cause; None where a restart is worth it."""
        limit = self._job.spec.checkpoint.max_restarts
        if not end.can_restart or self._full_disk() is not None:
            return ""
        repeated = previous is not None and end.signature is not None
        if repeated and (end.signature, end.step) == (previous.signature, previous.step):  # type: ignore[union-attr]
            return f" (the same error as before the restart, again after step {end.step})"
        if self._restarts >= limit:
            return f" (checkpoint.max_restarts is {limit})"
        return None

    def _finish(self, attempt: int, end: AttemptEnd) -> int:
        """Settle what is asked of a run that was told to stop, write the outcome and say it."""
        kind, reason = end.kind, end.reason
        asked = self._stopping.reason or (reason if end.at_once else None)
        if asked is not None and (kind is EndKind.PREEMPTED or (kind is EndKind.FAILED and end.can_restart)):
            kind, reason = self._settle_stop(asked, end)
            request = self._stopping.request
            if kind is EndKind.PREEMPTED and request is not None and request.limit is not None:
                kind = request.limit
        elif end.store_gone:
            saved = self._past.saved_step() or 0
            reason = f"{reason}; last checkpoint at step {saved}, {max(0, end.step - saved)} steps to do again"
        elif kind is EndKind.PREEMPTED:
            self._say_stop(asked or reason, attempt, end.step)
        elif kind is EndKind.DONE:
            reason = reason or self._past.early_stop(attempt)
        full = self._full_disk() if kind is EndKind.FAILED else None
        if full is not None and full not in reason:
            reason = f"{full}; make room, then `dolphin resume` goes on ({reason})"
        disk.release(self._run_dir.path)
        code = EXIT_CODES[kind]
        try:
            self._record(kind, reason, asked or reason, end.step, attempt)
        except OSError as error:  # a full disk must not turn a committed stop into a failure
            say(f"cannot write {self._run_dir.outcome}: {error.strerror}")
        with contextlib.suppress(OSError):
            (self._run_dir.path / STOP_FILE).unlink(missing_ok=True)
        if self._hooks is not None:
            self._hooks.close()
        say(f"{kind.value.replace('_', ' ')}{': ' if reason else ''}{reason} (exit code {int(code)})")
        return code

    def _record(self, kind: EndKind, reason: str, asked: str, step: int, attempt: int) -> None:
        """The last events, and the outcome."""
        if self._nodes.rank != 0:
            return
        saved = self._past.saved_step()
        if kind is EndKind.PREEMPTED:
            if self._past.last(EventKind.STOP_REQUESTED, "attempt") != attempt:
                self._emit(EventKind.STOP_REQUESTED, attempt, reason=asked, step=step)
            self._emit(EventKind.PREEMPTED, attempt, step=saved, reason=reason)
        if kind is EndKind.DONE:
            self._emit(EventKind.PHASE, attempt, phase=Phase.DONE.value)
        self._emit(EventKind.FINISHED, attempt, exit_code=int(EXIT_CODES[kind]), reason=reason)
        seconds = time.time() - self._began
        ended = Ended(kind, reason, max(step, saved or 0), attempt, seconds)
        write_outcome(self._past, ended, self._job.limits)

    def _settle_stop(self, asked: str, end: AttemptEnd) -> tuple[EndKind, str]:
        """How a run ends that was asked to stop: in agreement, at once, or with an error on its way out."""
        saved, at_once = self._past.saved_step(), self._stopping.at_once or end.at_once
        if end.kind is EndKind.PREEMPTED and not at_once and not end.store_gone:
            return EndKind.PREEMPTED, asked
        how = "left at once on a second signal" if at_once else f"did not stop cleanly ({end.reason})"
        reached = max(end.step, saved or 0)
        if saved is None and reached > 0 and not end.store_gone:
            return EndKind.FAILED, f"{asked}; {how}; {reached} steps are lost, there was no checkpoint yet"
        lost = reached - (saved or 0)
        return EndKind.PREEMPTED, f"{asked}; {how}; last checkpoint at step {saved or 0}, {lost} steps to do again"

    def _prepare_data(self, attempt: int) -> AttemptEnd | None:
        """Run the preparation, passing its output on; None where the ranks may start, under the torchrun that was started
        beside it."""
        if self._prepare == "none":
            return None
        self._emit(EventKind.PHASE, attempt, phase=Phase.PREPARING_DATA.value)
        self._early = Torchrun(rank_environment(self._job, os.environ))
        code, last = self._run_child({"OMP_NUM_THREADS": "1"}, attempt, self._prepare, str(self._train_json))
        if code == 0:
            return None
        if self._stopping.reason is not None:
            return AttemptEnd(EndKind.PREEMPTED, "while preparing data", self._past.saved_step() or 0)
        if code == ExitCode.BAD_INPUT:
            return AttemptEnd(EndKind.BAD_INPUT, last, 0)
        reason = f"preparing data {death(code, 0)}" if code < 0 else f"preparing data failed: {last}"
        return AttemptEnd(EndKind.FAILED, reason, 0)

    def _finish_model(self, attempt: int, end: AttemptEnd) -> AttemptEnd:
        """What the job asks of the exported model. What fails of it is told; the model is whole, and so the run is done."""
        self._emit(EventKind.PHASE, attempt, phase=Phase.FINISHING.value)
        code, last = self._run_child({}, attempt, FINISH, str(self._train_json), "--attempt", str(attempt))
        if self._stopping.reason is not None and code != 0:
            return AttemptEnd(EndKind.PREEMPTED, "while finishing the model", end.step)
        if code == 0:
            return end
        why = death(code, 0) if code < 0 else f"failed: {last}"
        return AttemptEnd(EndKind.DONE, f"the model is whole, but what follows it {why}", end.step)

    def _run_child(self, defaults: dict[str, str], attempt: int, module: str, *arguments: str) -> tuple[int, str]:
        """Run a module beside the ranks, passing its output on: its exit code and the last line that it said."""
        command = python.command(module, *arguments)
        child = subprocess.Popen(
            parent_death.command(os.getpid(), *command),
            env=rank_environment(self._job, {**defaults, **os.environ}),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        said = ["it said nothing"]
        printed = log.Following(child, said.append)

        def stop_where_asked() -> None:
            self._stopping.look(None)
            if self._stopping.reason is not None and child.returncode is None:
                self._on_stop(self._stopping.reason, attempt, 0)
                kill_descendants(self._wake, child)

        code = self._wake.wait_for(child, stop_where_asked)
        kill_descendants(self._wake, spared=self._early.process.pid if self._early is not None and code == 0 else None)
        printed.end()
        return code, said[-1]

    def _on_stop(self, reason: str, attempt: int, step: int) -> None:
        """The first time a request is seen: the event, one line, and a warning where the grace is too short."""
        if self._stop_said:
            return
        self._say_stop(reason, attempt, step)
        grace_s = self._stopping.notice_grace_s or self._grace_s
        save_s = self._past.last_save_seconds()
        if grace_s and save_s is not None and save_s > grace_s:
            say(
                f"the grace of {grace_s:.0f} s is too short for a save (the last one took {save_s:.0f} s): what was "
                f"trained after the checkpoint of step {self._past.saved_step()} may have to be done again"
            )

    def _say_stop(self, reason: str, attempt: int, step: int) -> None:
        """The ranks tell of it themselves once they have agreed; see `_finish` for when they could not."""
        self._stop_said = True
        say(f"asked to stop: {reason} (attempt {attempt}, step {step})")

    def _watch_notices(self) -> None:
        """A thread: a spot notice becomes a request to stop."""
        notice = spot_notices.wait_for_notice(os.environ)
        if notice is not None:
            self._stopping.notice_grace_s = notice.grace_s
            self._stopping.notice = notice.text
            self._wake.rouse()

    def _look_at_limits(self, step: int | None) -> StopRequest | None:
        """Node 0 watches deadline and budget for all: its records tell what was paid."""
        if self._nodes.rank != 0:
            return None
        if self._watch is None:  # once this start is among the records
            self._watch = limits.Watch(self._job.limits, self._past, self._warn_of_limit, self._job.step_seconds)
        return self._watch.look(step)

    def _warn_of_limit(self, **fields: object) -> None:
        say(str(fields["reason"]))
        self._emit(EventKind.LIMIT_NEAR, self._attempt, **fields)

    def _begin_attempt(self) -> int:
        """1 + the highest attempt that this node has begun, and its folder. Nodes that share the folder agree."""
        number = self._attempt = max(self._run_dir.attempts_begun(self._nodes.rank), default=0) + 1
        folder = self._run_dir.attempt_dir(number)
        folder.mkdir(exist_ok=True)
        (folder / node_mark(self._nodes.rank)).touch()
        job = self._job
        self._emit(
            EventKind.ATTEMPT_STARTED, number, nproc=job.nproc, device=job.device, pid=os.getpid(), began=self._began
        )
        return number

    def _emit(self, event: EventKind, attempt: int, **fields: object) -> None:
        if self._nodes.rank == 0:
            self._run_dir.emit(event, attempt=attempt, **fields)

    def _take_lock(self) -> IO[str]:
        """Hold `attempts/.lock-N` until this process ends, however it ends."""
        path = self._run_dir.attempts / f".lock-{self._nodes.rank}"
        handle = open(path, "w")  # noqa: SIM115  (held until the process ends)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingFailed(
                f"{self._run_dir.path}: another supervisor works in this run folder; stop it first"
            ) from error
        except OSError:
            say("this file system has no locks: make sure that one supervisor works in the run folder")
        return handle
