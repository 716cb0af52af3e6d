"""The cache of prepared data under real kills: what is there is whole, and whatever was begun is begun again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.data_job import chat, data_job, write_rows
from trainer.data.prepared import Prepared

TIMEOUT_S = 120
"""Generous: a busy machine is no failure."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    rows = [chat(f"question {i}", f"{i} the sea is blue and deep, a dolphin swims far. " * 20) for i in range(2000)]
    write_rows(folder / "data.jsonl", rows)
    return folder


def start(root: Path, name: str, cache: str, data: str = "data.jsonl") -> subprocess.Popen[bytes]:
    job = data_job(root, root / data, name=name, sequence_length=4096, workers=2)
    (root / name).mkdir()
    train_json = root / name / "train.json"
    train_json.write_text(job.model_copy(update={"cache_dir": str(root / cache)}).model_dump_json())
    with open(root / name / "log", "wb") as log:
        return subprocess.Popen([sys.executable, "-m", "trainer.data.prepare", str(train_json)], stdout=log, stderr=log)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def half_made(root: Path, cache: str) -> list[Path]:
    return [path for path in (root / cache / "data").glob("*.tmp-*/tokens.bin") if path.stat().st_size > 0]


def entries(root: Path, cache: str) -> list[Path]:
    return [path for path in (root / cache / "data").iterdir() if path.is_dir()]


def test_kill_in_the_middle_leaves_no_entry_and_no_worker_and_the_next_run_builds_it(root: Path) -> None:
    process = start(root, "killed", "cache-kill")
    wait_for(lambda: bool(half_made(root, "cache-kill")), process)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.kill()
    process.wait(TIMEOUT_S)
    assert [path.name for path in entries(root, "cache-kill") if ".tmp-" not in path.name] == []
    assert psutil.wait_procs(workers, timeout=TIMEOUT_S)[1] == [], "workers outlived the process that they work for"

    assert start(root, "after", "cache-kill").wait(TIMEOUT_S) == 0, (root / "after" / "log").read_text()
    assert len(entries(root, "cache-kill")) == 1, "what the killed run left is cleared away"
    assert len(Prepared.open(root / "after").train) == 2000


def test_ctrl_c_ends_at_once_and_leaves_nothing_half_made(root: Path) -> None:
    process = start(root, "interrupted", "cache-ctrl-c")
    wait_for(lambda: bool(half_made(root, "cache-ctrl-c")), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 130
    assert entries(root, "cache-ctrl-c") == []
    log = (root / "interrupted" / "log").read_text()
    assert "interrupted" in log
    assert "Traceback" not in log


def test_two_processes_that_want_the_same_data_make_it_once(root: Path) -> None:
    both = [start(root, f"both-{number}", "cache-both") for number in range(2)]
    assert [process.wait(TIMEOUT_S) for process in both] == [0, 0]
    opened = [Prepared.open(root / f"both-{number}") for number in range(2)]
    assert opened[0].key == opened[1].key
    assert opened[0].path == opened[1].path
    logs = "".join((root / f"both-{number}" / "log").read_text() for number in range(2))
    assert logs.count("2,000 conversations") == 1
    assert len(entries(root, "cache-both")) == 1


def test_a_worker_that_is_killed_fails_the_preparation_instead_of_hanging_it(root: Path) -> None:
    rows = (root / "data.jsonl").read_bytes()
    (root / "long.jsonl").write_bytes(rows * 10)  # so long that the worker still has most of it to do
    process = start(root, "worker-killed", "cache-worker", "long.jsonl")
    wait_for(lambda: bool(half_made(root, "cache-worker")), process)
    os.kill(psutil.Process(process.pid).children()[0].pid, signal.SIGKILL)
    assert process.wait(TIMEOUT_S) == 1
    assert "a worker that prepares data was killed" in (root / "worker-killed" / "log").read_text()
    assert entries(root, "cache-worker") == []
