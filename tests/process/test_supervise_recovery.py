"""The supervisor against real torchrun and two gloo ranks: kills, hangs, signals and notices. Nothing is mocked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from trainer.run.run_folder import RunDir
from trainer.supervise.heartbeat import read_heartbeat

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120


class Supervised:
    """A supervisor with stand-in ranks, started as every backend starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, RunDir(folder / "run")
        self.run.path.mkdir()
        self.train_json = folder / "train.json"
        self.log = folder / "log.txt"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, plan: dict[str, Any], *, nproc: int = 2, max_restarts: int = 3, facts: Any = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        spec = {
            "name": "t",
            "model": {"base": "x"},
            "data": {"sources": [{"path": "x"}]},
            "train": {"global_batch": 2},
            "checkpoint": {"max_restarts": max_restarts},
        }
        job = {
            "run_id": f"t-{os.getpid()}", "run_dir": str(self.run.path), "cache_dir": str(self.folder / "cache"),
            "nproc": nproc, "device": "cpu", "spec": spec, **(facts or {}),
        }  # fmt: skip
        self.train_json.write_text(json.dumps(job))
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "STAND_IN": json.dumps(plan),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        command = [
            sys.executable,
            "-m",
            "trainer.supervise",
            str(self.train_json),
            "--main",
            "tests.support.stand_in_rank",
        ]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [*command, "--prepare", "none"], env=env, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the supervisor did not end; its log:\n{self.log.read_text()}")

    def wait_until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline or self.processes[-1].poll() is not None:
                pytest.fail(f"never came: {what}; the log:\n{self.log.read_text()}")
            time.sleep(0.05)

    def wait_for_step(self, step: int, attempt: int = 1) -> None:
        def reached() -> bool:
            beats = [read_heartbeat(self.run.attempt_dir(attempt), rank) for rank in range(2)]
            return all(beat is not None and beat.step >= step and beat.busy is None for beat in beats)

        self.wait_until(reached, f"step {step} of attempt {attempt}")

    def rank_pid(self, rank: int, attempt: int = 1) -> int:
        beat = read_heartbeat(self.run.attempt_dir(attempt), rank)
        assert beat is not None
        return beat.pid

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.run.read_events() if event["event"] == kind]

    def outcome(self) -> dict[str, Any]:
        return json.loads(self.run.outcome.read_text())


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    under_test = Supervised(tmp_path)
    yield under_test
    for process in under_test.processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_killed_rank_a_killed_torchrun_and_a_stopped_rank_lose_nothing(supervised: Supervised) -> None:
    plan = {"steps": 100_000, "step_s": 0.05, "fault": {"kind": "kill", "step": 5, "rank": 1, "attempts": 1}}
    process = supervised.start(plan)
    supervised.wait_for_step(5, attempt=2)
    restart = supervised.events("restarting")[0]
    assert "rank 1 was killed from outside with SIGKILL" in restart["reason"]
    assert supervised.events("plan")[0]["attempt"] == 1

    torchrun = next(p for p in psutil.Process(process.pid).children() if "trainer.supervise.torchrun" in p.cmdline())
    ranks = torchrun.children()
    assert len(ranks) == 2
    torchrun.kill()
    supervised.wait_for_step(5, attempt=3)
    assert wait_gone(ranks) == []
    assert "torchrun was killed" in supervised.events("restarting")[1]["reason"]

    before = {event["step"] for event in supervised.events("checkpoint_saved")}
    (supervised.run.path / "SAVE").touch()
    supervised.wait_until(
        lambda: (
            not (supervised.run.path / "SAVE").exists()
            and {e["step"] for e in supervised.events("checkpoint_saved")} - before
        ),
        "the save that was asked for",
    )
    assert process.poll() is None
    os.kill(supervised.rank_pid(1, attempt=3), signal.SIGTERM)
    assert supervised.finish(process) == 75
    outcome = supervised.outcome()
    assert (outcome["state"], outcome["exit_code"], outcome["attempt"]) == ("preempted", 75, 3)
    assert outcome["reason"] == "SIGTERM to rank 1"
    assert supervised.events("checkpoint_saved")[-1]["step"] == outcome["step"]


def test_a_killed_supervisor_leaves_no_process_and_the_next_one_goes_on(supervised: Supervised) -> None:
    process = supervised.start({"steps": 100_000, "step_s": 0.05})
    supervised.wait_for_step(3)
    everyone = family(process.pid)
    assert len(everyone) >= 3
    process.kill()
    assert wait_gone(everyone) == []
    assert not supervised.run.outcome.exists()

    class Metadata(BaseHTTPRequestHandler):
        preempted = False

        def do_GET(self) -> None:
            known = (
                self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google"
            )
            body = (b"TRUE" if Metadata.preempted else b"FALSE") if known else b""
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        saved = supervised.events("checkpoint_saved")[-1]["step"]
        process = supervised.start(
            {"steps": 100_000, "step_s": 0.05, "save_seconds": 48}, GCE_METADATA_HOST=f"127.0.0.1:{server.server_port}"
        )
        supervised.wait_for_step(saved + 3, attempt=2)
        Metadata.preempted = True
        assert supervised.finish(process) == 75
    finally:
        server.shutdown()
        server.server_close()
    assert "spot notice from Google Cloud" in supervised.outcome()["reason"]
    assert "the grace of 30 s is too short for a save (the last one took 48 s)" in supervised.log.read_text()


def test_an_error_that_comes_back_at_the_same_step_ends_the_run_with_its_cause(supervised: Supervised) -> None:
    process = supervised.start({"steps": 50, "fault": {"kind": "raise", "step": 5, "rank": 1}})
    assert supervised.finish(process) == 1
    outcome = supervised.outcome()
    assert (outcome["state"], outcome["exit_code"], outcome["attempt"]) == ("failed", 1, 2)
    assert outcome["reason"].startswith("rank 1: RuntimeError: index 7 is out of bounds (the same error")
    assert len(supervised.events("restarting")) == 1
    assert "rank 0 lost another rank" in supervised.log.read_text()


def test_a_hung_rank_shows_its_stacks_and_is_brought_down(supervised: Supervised) -> None:
    plan = {"steps": 50, "gloo": False, "fault": {"kind": "hang", "step": 5, "rank": 1}}
    process = supervised.start({**plan, "step_s": 0.6}, max_restarts=0, DOLPHIN_HANG_FLOOR_S="2")
    assert supervised.finish(process) == 1
    reason, log = supervised.outcome()["reason"], supervised.log.read_text()
    assert reason.startswith("hang: rank 1 made no progress for")
    assert "in step 6" in reason
    assert "stand_in_rank.py" in log.split("stacks of rank 1:")[1]
    assert log.count("starting 2 ranks") == 1


def test_a_step_longer_than_the_limit_lives_and_a_silent_rank_is_ended(supervised: Supervised) -> None:
    """A clock of one second for ten minutes: the plan says 2 s a step. The first step is silent for 3 s; the others take 1.6 s in
    micro batches of 0.4 s; then a rank falls silent in step 5."""
    slow = {"gloo": False, "first_step_s": 3.0, "micro_batches": 4, "micro_batch_s": 0.4, "steps": 50, "save_every": 99}
    plan = {**slow, "fault": {"kind": "hang", "step": 4, "rank": 1}}
    process = supervised.start(plan, max_restarts=0, facts={"step_seconds": 2.0}, DOLPHIN_HANG_FLOOR_S="1")
    assert supervised.finish(process) == 1
    reason = supervised.outcome()["reason"]
    assert reason.startswith("hang: rank 1 made no progress for")
    assert "(in step 5, limit" in reason


def test_ranks_that_do_not_reach_each_other_are_started_once_more_without_p2p(supervised: Supervised) -> None:
    plan = {"gloo": False, "steps": 2, "save_every": 99, "fault": {"kind": "no contact", "step": 0, "rank": 1}}
    process = supervised.start(plan, max_restarts=0, NCCL_P2P_DISABLE="0")
    assert supervised.finish(process) == 1, "what the user set is left alone"
    process = supervised.start(plan, max_restarts=0)
    assert supervised.finish(process) == 0
    log = supervised.log.read_text()
    assert log.count("once more with NCCL_P2P_DISABLE=1") == 1
    assert "stand_in_rank.py" in log.split("gives up at step 0")[1], "the stacks are in the log"


def test_a_library_that_aborts_leaves_its_stacks_in_the_log(supervised: Supervised) -> None:
    plan = {"gloo": False, "steps": 2, "fault": {"kind": "abort", "step": 0, "rank": 0}}
    process = supervised.start(plan, nproc=1, max_restarts=0)
    assert supervised.finish(process) == 1
    assert "stand_in_rank.py" in supervised.log.read_text().split("Fatal Python error: Aborted")[1]


def test_bad_input_is_never_tried_again(supervised: Supervised) -> None:
    process = supervised.start({"gloo": False, "steps": 50, "fault": {"kind": "bad", "step": 1, "rank": 1}})
    assert supervised.finish(process) == 64
    assert supervised.outcome()["reason"] == "data.jsonl:7: no `messages`"
    assert supervised.events("restarting") == []


def test_a_second_signal_leaves_at_once_and_says_what_is_lost(supervised: Supervised) -> None:
    plan = {"steps": 50, "gloo": False, "fault": {"kind": "hang", "step": 5, "rank": 0}, "save_every": 2}
    process = supervised.start(plan, nproc=1)
    supervised.wait_until(lambda: (b := read_heartbeat(supervised.run.attempt_dir(1), 0)) and b.step == 5, "step 5")
    everyone = family(process.pid)
    process.send_signal(signal.SIGTERM)
    supervised.wait_until(lambda: "asked to stop" in supervised.log.read_text(), "the first signal")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert supervised.finish(process) == 75
    assert wait_gone(everyone) == []
    assert supervised.outcome()["reason"].endswith(
        "left at once on a second signal; last checkpoint at step 4, 1 steps to do again"
    )
