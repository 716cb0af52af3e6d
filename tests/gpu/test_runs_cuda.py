"""Whole runs on GPUs, by the real supervisor: killed and gone on from, and over NCCL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_job
from tests.support.tiny_job import TIMEOUT_S, losses
from trainer.run.run_folder import EventKind, RunDir
from trainer.supervise.heartbeat import read_heartbeat

TRAIN: dict[str, Any] = {"precision": "bf16", "deterministic": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tiny_job.write_model(folder / "base", hidden=64)  # heads of 16: a kernel takes no fewer than 8
    return folder


def job(root: Path, name: str, nproc: int, **groups: dict[str, Any]) -> RunDir:
    groups["train"] = TRAIN | groups.get("train", {})
    run = tiny_job.write_job(root, name, nproc=nproc, **groups)
    found = json.loads(run.train_json.read_text())
    run.train_json.write_text(json.dumps(found | {"device": "cuda"}))
    return run


def start(run: RunDir) -> subprocess.Popen[bytes]:
    """As `tiny_job.start`, with the GPUs in sight."""
    visible = {name: value for name, value in os.environ.items() if name == "CUDA_VISIBLE_DEVICES"}
    environment = {name: value for name, value in tiny_job.environment().items() if name != "CUDA_VISIBLE_DEVICES"}
    with open(run.log, "ab") as log:
        return subprocess.Popen(
            tiny_job.command(run),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment | visible,
            start_new_session=True,
        )


def finish(run: RunDir, process: subprocess.Popen[bytes]) -> RunDir:
    code = process.wait(TIMEOUT_S)
    assert code == 0, f"exit {code}:\n{run.log.read_text()[-4000:]}"
    return run


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], run: RunDir) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, f"the run ended:\n{run.log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"it does not come:\n{run.log.read_text()[-4000:]}"
        time.sleep(0.1)


RANKS = [pytest.param(1, id="1-gpu"), pytest.param(2, id="2-gpus", marks=pytest.mark.gpus(2))]


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("nproc", RANKS)
def test_a_rank_that_is_killed_goes_on_from_its_save_with_the_same_losses(root: Path, nproc: int, zero: int) -> None:
    """Through dolphin's own attention: the kernel that `auto` takes on this card."""
    every = {"checkpoint": {"every": {"steps": 4}}, "train": {"zero": zero, "max_steps": 40}}
    whole = job(root, f"whole-{nproc}-{zero}", nproc, **every)
    finish(whole, start(whole))
    killed = job(root, f"killed-{nproc}-{zero}", nproc, **every)
    process = start(killed)

    def saved() -> bool:
        return any(event["event"] == EventKind.CHECKPOINT_SAVED for event in killed.read_events())

    wait_for(saved, process, killed)
    beat = read_heartbeat(killed.attempt_dir(1), nproc - 1)
    assert beat is not None
    os.kill(beat.pid, signal.SIGKILL)
    finish(killed, process)
    resumed = [event for event in killed.read_events() if event["event"] == EventKind.RESUMED]
    assert [event["step"] % 4 for event in resumed] == [0], "the kill came too late to matter"
    assert losses(whole) == losses(killed)
    assert losses(whole)


@pytest.mark.gpus(2)
@pytest.mark.parametrize("zero", [1, 3])
def test_two_gpus_over_nccl_have_the_losses_of_one(root: Path, zero: int) -> None:
    """The ranks meet in a file, as on every node: nothing listens. Sums over ranks come in another order, in bf16."""
    runs = [job(root, f"nccl-{nproc}-{zero}", nproc, train={"zero": zero}) for nproc in (1, 2)]
    for run in runs:
        finish(run, start(run))
    one, two = map(losses, runs)
    assert one[-1] < one[0] - 0.1
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 2e-2
