"""The supervisor as a container's entry: its input, the data's preparation, as PID 1, and as one of two nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
PREPARE = "tests.support.stand_in_prepare"
PATIENCE_S = 120


def write_job(folder: Path, **more: Any) -> Path:
    spec = {"name": "t", "model": {"base": "x"}, "data": {"sources": [{"path": "x"}]}, "train": {"global_batch": 2}}
    job = {"run_id": "t-1", "run_dir": str(folder / "run"), "cache_dir": str(folder), "nproc": 1, "device": "cpu"}
    path = folder / "train.json"
    path.write_text(json.dumps({**job, "spec": spec, **more}))
    return path


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _end_what_a_failed_test_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


def start(train_json: Path, *options: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    supervise = [sys.executable, "-m", "trainer.supervise", str(train_json), "--main", "tests.support.stand_in_rank"]
    process = subprocess.Popen(
        [*before, *supervise, *options], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    STARTED.append(process)
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def outcome(train_json: Path) -> dict[str, Any]:
    return json.loads((Path(json.loads(train_json.read_text())["run_dir"]) / "outcome.json").read_text())


def events(train_json: Path) -> list[dict[str, Any]]:
    path = Path(json.loads(train_json.read_text())["run_dir"]) / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("{", "Invalid JSON"),
        ('{"run_id": "x"}', "run_dir: Field required"),
    ],
)
def test_a_bad_train_json_is_one_line_and_exit_code_64(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "train.json"
    if text is not None:
        path.write_text(text)
    code, output = end(start(path))
    assert code == 64
    assert said in output
    assert output.count("\n") == 1


def test_what_fails_after_the_training_costs_no_trained_model(tmp_path: Path) -> None:
    """The stand-in leaves no folder that could be GGUF: that is told, and the run is done."""
    pytest.importorskip("gguf")
    path = write_job(tmp_path)
    job = json.loads(path.read_text())
    job["spec"]["export"] = {"gguf": ["f16"]}
    path.write_text(json.dumps(job))
    code, said = end(start(path, "--prepare", "none", STAND_IN='{"steps": 2, "gloo": false}'))
    assert code == 0, said
    assert "warning: gguf failed: " in said
    assert "holds no config.json" in said
    assert outcome(path)["state"] == "done"
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (told,) = [event for event in events if event["event"] == "afterwards"]
    assert (told["what"], told["ok"]) == ("gguf", False)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DOLPHIN_HANG_FLOOR_S", "ten", "environment variable DOLPHIN_HANG_FLOOR_S: 'ten' is not a whole number"),
        ("DOLPHIN_NUM_NODES", "2", "each node needs DOLPHIN_NODE_RANK (0 to 1) and DOLPHIN_MASTER_ADDR"),
    ],
)
def test_a_wrong_environment_is_said_before_anything_starts(tmp_path: Path, name: str, value: str, said: str) -> None:
    code, output = end(start(write_job(tmp_path), **{name: value}))
    assert code == 64
    assert said in output
    assert "Traceback" not in output


def test_bad_data_ends_the_run_before_any_rank_with_the_last_line_as_its_reason(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    code, output = end(start(path, "--prepare", PREPARE, STAND_IN_PREPARE="bad"))
    assert code == 64
    assert outcome(path)["reason"].startswith("data.jsonl:7: no `messages`; 1 of 9 rows is bad")
    assert "reading 3 sources" in output
    assert "starting" not in output


def test_a_preparation_that_dies_is_said_as_such(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    code, _ = end(start(path, "--prepare", PREPARE, STAND_IN_PREPARE="crash"))
    assert code == 1
    assert outcome(path)["reason"] == "preparing data was ended by SIGABRT"


def test_a_stop_while_preparing_leaves_no_worker_and_may_be_resumed(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    process = start(path, "--prepare", PREPARE, STAND_IN_PREPARE="long")
    assert process.stdout is not None
    while "pool is up" not in process.stdout.readline():
        assert process.poll() is None
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 4  # the preparation, its two, and the torchrun that waits for it
    second, said = end(start(path, "--prepare", "none"))
    assert second == 1
    assert "another supervisor works in this run folder" in said
    process.send_signal(signal.SIGINT)
    code, _ = end(process)
    assert code == 75
    assert outcome(path)["reason"] == "SIGINT to the supervisor"
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a process-id namespace (unshare --pid)")
def test_as_pid_1_it_reaps_orphans_and_stops_on_a_signal(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    inside = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    plan = json.dumps({"steps": 100_000, "step_s": 0.05, "gloo": False})
    process = start(path, "--prepare", PREPARE, before=inside, STAND_IN=plan, STAND_IN_PREPARE="orphans")
    beat = tmp_path / "run" / "attempts" / "1" / "heartbeat-0"
    deadline = time.monotonic() + PATIENCE_S
    while not (beat.exists() and json.loads(beat.read_text() or "{}").get("step", 0) > 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (supervisor,) = psutil.Process(process.pid).children()
    below = supervisor.children(recursive=True)
    assert [child for child in below if child.status() == psutil.STATUS_ZOMBIE] == []
    (torchrun,) = (child for child in below if child.cmdline()[-1:] == ["trainer.supervise.torchrun"])
    (prepared,) = (event["time"] for event in events(path) if event.get("phase") == "starting ranks")
    assert torchrun.create_time() < prepared - 1.0  # beside the preparation, which takes 1.5 s
    supervisor.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 75, output
    assert outcome(path)["state"] == "preempted"


def test_two_nodes_rendezvous_and_only_the_first_writes_the_outcome(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = write_job(tmp_path)
    common = {"DOLPHIN_NUM_NODES": "2", "DOLPHIN_MASTER_ADDR": "127.0.0.1", "DOLPHIN_MASTER_PORT": str(port)}
    nodes = [
        start(path, "--prepare", "none", STAND_IN='{"steps": 6}', DOLPHIN_NODE_RANK=str(rank), **common)
        for rank in range(2)
    ]
    ends = [end(node) for node in nodes]
    assert [code for code, _ in ends] == [0, 0], ends
    assert (outcome(path)["state"], outcome(path)["attempt"]) == ("done", 1)
    words = sorted(file.name for file in (tmp_path / "run" / "attempts" / "1").glob("rank-*.json"))
    assert words == ["rank-0.json", "rank-1.json"]
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert events.count('"finished"') == 1
