"""One attempt: torchrun and its ranks, from their start until the last of them is gone.

Owns the ranks' environment, the watch over them, and bringing them down. Refuses to decide what an end means
(`verdict`) and whether there is another attempt (`supervisor`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.run import python
from trainer.run.exits import BadInput, EndKind
from trainer.run.run_folder import STOP_FILE, RunDir
from trainer.run.spec import NodeJob
from trainer.supervise import parent_death, rendezvous
from trainer.supervise.agent import Torchrun
from trainer.supervise.heartbeat import BUSY_FACTOR, DEFAULT_FLOOR_S, Beat, hang, read_heartbeat
from trainer.supervise.log import say
from trainer.supervise.rank_guard import STORE_GONE, RankEnd, read_rank_end, stack_file
from trainer.supervise.signals import Wake, kill_descendants
from trainer.supervise.stop_flag import StopRequest, ask_ranks_to_stop, why_file_stop
from trainer.supervise.verdict import Evidence

PEER_GRACE_S = 8.0
"""How long the other ranks may take to fail of their own, with a traceback, once one is dead."""
LINGER_S = 60.0
"""How long ranks that have said their last words may take to leave."""
ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Where torch's allocator takes its settings from; the first wins over the others, which people still set."""
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring", "FLASH_ATTENTION_DETERMINISTIC": "1"}
"""What libraries read before the first kernel runs: cuBLAS, NCCL (which else takes a tree or a ring by its own timings), and
transformers for the flash-attn package."""
STACKS_S = 3.0
"""How long a rank may take to write its stacks."""
PATIENCE_MINUTES = 24 * 60
"""Of DeepSpeed's process groups and of NCCL's watchdog, which end a process after 10 and 8 minutes of their own accord."""
SHUTDOWN_TIMEOUT_S = 900
"""torchrun's own patience after a signal to it; the watch decides on everything else before that."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """This node's place among the job's nodes."""

    count: int = 1
    rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Nodes:
        """DOLPHIN_NUM_NODES (1), and for more DOLPHIN_NODE_RANK, DOLPHIN_MASTER_ADDR, DOLPHIN_MASTER_PORT (29500)."""
        count = whole_number(environment, "DOLPHIN_NUM_NODES", 1)
        if count == 1:
            return cls()
        rank, address = whole_number(environment, "DOLPHIN_NODE_RANK", -1), environment.get("DOLPHIN_MASTER_ADDR", "")
        if not 0 <= rank < count or not address:
            raise BadInput(
                f"DOLPHIN_NUM_NODES is {count}, so each node needs DOLPHIN_NODE_RANK (0 to {count - 1}) and "
                "DOLPHIN_MASTER_ADDR (node 0's address); the backend sets them"
            )
        return cls(count, rank, address, whole_number(environment, "DOLPHIN_MASTER_PORT", 29500))


class Stopping:
    """Requests to stop that reach the supervisor, kept over attempts: signals, notices, the job's limits, the file STOP."""

    def __init__(
        self, wake: Wake, run: RunDir, watch: Callable[[int | None], StopRequest | None] = lambda step: None
    ) -> None:
        """`watch` says, after so many steps, whether a limit of the job's is reached."""
        self.wake, self._watch = wake, watch
        self._limit: StopRequest | None = None
        self._stop_file = run.path / STOP_FILE
        self.notice: str | None = None
        """Set from the notices' thread."""
        self.notice_grace_s: float | None = None

    def look(self, step: int | None) -> None:
        """At the job's limits, after so many steps; None before any rank starts."""
        self._limit = self._limit or self._watch(step)

    @property
    def request(self) -> StopRequest | None:
        """The most pressing request, or None: who ends the machine comes before the job's own limits."""
        if self.wake.stop_signals:
            return StopRequest(f"{self.wake.stop_signals[0]} to the supervisor")
        if self.notice is not None:
            return StopRequest(self.notice)
        why = why_file_stop(self._stop_file)
        return self._limit if why is None else StopRequest(why)

    @property
    def reason(self) -> str | None:
        """Of `request`."""
        return None if self.request is None else self.request.reason

    @property
    def at_once(self) -> bool:
        """A second signal: whoever sent it does not want to wait."""
        return len(self.wake.stop_signals) >= 2


@dataclass(frozen=True, slots=True)
class Program:
    """What each rank runs."""

    main: str
    """A module that is started with the train.json and the attempt's number."""
    train_json: Path


class Attempt:
    """Runs once. `run` returns the evidence, with no process of the attempt left."""

    def __init__(
        self,
        job: NodeJob,
        program: Program,
        number: int,
        nodes: Nodes,
        stopping: Stopping,
        on_stop: Callable[[str, int, int], None],
    ) -> None:
        """`on_stop(reason, attempt, step)` hears of a request to stop."""
        self.job, self.number, self.nodes = job, number, nodes
        self.dir = RunDir(job.run_dir).attempt_dir(number)
        self._program, self._wake = program, stopping.wake
        self._stopping, self._on_stop = stopping, on_stop
        self._floor_s = whole_number(os.environ, "DOLPHIN_HANG_FLOOR_S", DEFAULT_FLOOR_S)
        self._told = self._closed = False
        self._hang: str | None = None
        self._first_death_at: float | None = None
        self._all_ended_at: float | None = None
        self._started_at = time.monotonic()
        self._torchrun: Torchrun | None = None
        first = nodes.rank * job.nproc
        self.ranks = range(first, first + job.nproc)
        """Global ranks of this node."""

    def run(self, torchrun: Torchrun | None = None) -> Evidence:
        """`torchrun` is one that was started before, if it still lives. Raises OSError where this node has no room for the folder
        of the rendezvous."""
        if torchrun is not None and torchrun.is_alive():
            self._torchrun = torchrun
        if self.nodes.count > 1:
            return self._run(None)
        with rendezvous.private_folder() as folder:
            return self._run(folder)

    def _run(self, folder: Path | None) -> Evidence:
        """`folder` is where the ranks of one node meet; None for several nodes."""
        oom_before = oom_kills()
        report = self.dir / f"torchrun-{self.nodes.rank}.json"
        self._torchrun = self._torchrun or Torchrun(rank_environment(self.job, os.environ))
        self._torchrun.tell(
            report,
            self._arguments(folder),
            rendezvous.ranks_environment(os.environ, folder, self.nodes.master_addr),
        )
        code = self._wake.wait_for(self._torchrun.process, self._tick)
        kill_descendants(self._wake)
        self._torchrun.end()
        found = json.loads(report.read_text()) if report.exists() else {"failures": [], "signal": None}
        return Evidence(
            num_ranks=self.job.nproc,
            ends={rank - self.ranks[0]: end for rank, end in self._ends().items()},
            failures={} if self._closed and self._first_death_at is None else self._failures(found),
            torchrun_code=code,
            step=max((beat.step for beat in self._beats().values()), default=0),
            torchrun_signal=found["signal"],
            hang=self._hang,
            oom_kills=oom_kills() - oom_before,
        )

    def _failures(self, found: dict[str, list[dict[str, int]]]) -> dict[int, int]:
        return {failure["rank"] - self.ranks[0]: failure["exit_code"] for failure in found["failures"]}

    def _arguments(self, folder: Path | None) -> list[str]:
        """torchrun's arguments; each rank hangs on torchrun by a lifeline of its own."""
        if folder is not None:
            where = rendezvous.of_one_node(folder, self.job.run_id)
        else:
            where = [
                f"--nnodes={self.nodes.count}", f"--node-rank={self.nodes.rank}", "--rdzv-backend=static",
                f"--master-addr={self.nodes.master_addr}", f"--master-port={self.nodes.master_port}",
                f"--rdzv-id={self.job.run_id}",
            ]  # fmt: skip
        rank = python.command(self._program.main, str(self._program.train_json), "--attempt", str(self.number))
        return [
            *where, f"--nproc-per-node={self.job.nproc}", f"--shutdown-timeout={SHUTDOWN_TIMEOUT_S}",
            "--signals-to-handle=SIGTERM,SIGINT", "--max-restarts=0", "--no-python",
            *parent_death.command(parent_death.TORCHRUN_PID, *rank),
        ]  # fmt: skip

    def _ends(self) -> dict[int, RankEnd]:
        read = {rank: read_rank_end(self.dir, rank) for rank in self.ranks}
        return {rank: end for rank, end in read.items() if end is not None}

    def _beats(self) -> dict[int, Beat]:
        read = {rank: read_heartbeat(self.dir, rank) for rank in self.ranks}
        return {rank: beat for rank, beat in read.items() if beat is not None}

    def _tick(self) -> None:
        """Look after the ranks: pass a request on, see a death or a hang, bring down what is left."""
        if self._closed:
            return
        if not self._told:
            step = max((beat.step for beat in self._beats().values()), default=0)
            self._stopping.look(step)
            request = self._stopping.request
            if request is not None:
                self._told = True
                self._pass_on(request)
                self._on_stop(request.reason, self.number, step)
        if self._stopping.at_once:
            self._close([])
            return
        ends, beats = self._ends(), self._beats()
        at_work = {rank: beat for rank, beat in beats.items() if rank not in ends}
        dead = [rank for rank, beat in at_work.items() if not is_alive(beat.pid)]
        broken = dead or [
            rank
            for rank, end in ends.items()
            if end.kind in (EndKind.FAILED, EndKind.BAD_INPUT) or end.error == STORE_GONE
        ]
        now = time.monotonic()
        if broken:
            self._first_death_at = self._first_death_at or now
            left = [rank for rank in at_work if rank not in dead]
            if left and now - self._first_death_at >= PEER_GRACE_S:
                say(f"rank {broken[0]} is gone; bringing down rank {', '.join(map(str, left))}")
                self._close(left)
            elif now - self._first_death_at >= LINGER_S:
                say("the ranks have failed but do not leave; ending them")
                self._close(list(ends))
            return
        if len(ends) == len(self.ranks):
            self._all_ended_at = self._all_ended_at or now
            if now - self._all_ended_at >= LINGER_S:
                say("the ranks have finished but do not leave; ending them")
                self._close(list(self.ranks))
            return
        missing = set(self.ranks) - set(beats)
        if missing and now - self._started_at > BUSY_FACTOR * self._floor_s:
            self._hang = f"rank {min(missing)} did not start in {BUSY_FACTOR * self._floor_s:.0f} s"
        else:
            self._hang = hang(at_work, now, self._floor_s, self.job.step_seconds)
        if self._hang is not None:
            say(f"hang: {self._hang}; bringing all ranks down")
            self._close(list(at_work))

    def _pass_on(self, request: StopRequest) -> None:
        """Tell the ranks to stop: by a file, which also reaches those that have yet to start; else by a signal."""
        try:
            ask_ranks_to_stop(self.dir, request)
        except OSError as error:
            say(f"cannot write to {self.dir} ({error.strerror}); signalling the ranks instead")
            for beat in self._beats().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(beat.pid, signal.SIGTERM)

    def _close(self, ranks_to_show: list[int]) -> None:
        """Kill every rank, with the stacks of `ranks_to_show` in the log first; torchrun then ends by itself."""
        self._closed = True
        beats = self._beats()
        for rank in ranks_to_show:
            with contextlib.suppress(ProcessLookupError):
                os.kill(beats[rank].pid, signal.SIGUSR1)
        deadline = time.monotonic() + STACKS_S
        while time.monotonic() < deadline and any(not stack_text(self.dir, rank) for rank in ranks_to_show):
            time.sleep(0.1)
        for rank in ranks_to_show:
            say(f"stacks of rank {rank}:\n{stack_text(self.dir, rank) or '  (none: the process does not answer)'}")
        if self._stopping.at_once:
            self._kill_all()
            return
        for beat in beats.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(beat.pid, signal.SIGKILL)
        if set(self.ranks) - set(beats):  # a rank that never got as far as a heartbeat
            self._kill_all()

    def _kill_all(self) -> None:
        assert self._torchrun is not None
        kill_descendants(self._wake, self._torchrun.process)


def rank_environment(job: NodeJob, environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun and the ranks find in their environment."""
    bin_dir = str(Path(sys.executable).parent)
    env = python.environment(dict(environment))
    env["PATH"] = os.pathsep.join(
        [bin_dir, *env.get("PATH", os.defpath).split(os.pathsep)]
    )  # DeepSpeed looks for ninja
    env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // job.nproc)))
    env.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    env["PYTHONUNBUFFERED"] = "1"
    env["DOLPHIN_RUN_ID"] = job.run_id
    if job.device == "cpu":
        env["DS_ACCELERATOR"] = "cpu"
    else:
        if job.spec.train.deterministic:
            for name, value in DETERMINISTIC.items():
                env.setdefault(name, value)
        # the watch decides what is a hang: it knows what a rank was doing, and shows the stacks
        env.setdefault("DEEPSPEED_TIMEOUT", str(PATIENCE_MINUTES))
        env.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(60 * PATIENCE_MINUTES))
        # page-locked memory is rounded up to a power of two otherwise: of 17 GB that would be 34
        if not any(name in env for name in ALLOCATOR_NAMES):
            env[ALLOCATOR_NAMES[0]] = "expandable_segments:True,pinned_max_round_threshold_mb:64"
    return env


def whole_number(environment: Mapping[str, str], name: str, default: int) -> int:
    """Raises BadInput where the variable is set to anything else."""
    text = environment.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise BadInput(f"environment variable {name}: {text!r} is not a whole number") from error


def stack_text(attempt_dir: Path, rank: int) -> str:
    try:
        return stack_file(attempt_dir, rank).read_text()
    except FileNotFoundError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def oom_kills() -> int:
    """Processes that the kernel has killed for want of memory on this machine since it started."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
