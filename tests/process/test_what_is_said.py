"""What commands say of runs that are over, killed, or never began: it is asked, not assumed."""

from __future__ import annotations

import json
import os
import pty
import signal
from pathlib import Path

import pytest

from tests.support.dolphin_cli import Dolphin, wait_until, write_job

LONG = {"steps": 3000, "pause_s": 0.02}


@pytest.fixture
def dolphin(tmp_path):
    dolphin = Dolphin(tmp_path / "home")
    yield dolphin
    for run in dolphin.run_ids():
        dolphin.run("down", run, "--now", expect=None)


@pytest.fixture
def job(tmp_path):
    return write_job(tmp_path / "job")


@pytest.mark.parametrize(("exit_code", "state", "code"), [(0, "succeeded", 0), (1, "failed: as wished", 1)])
def test_a_reader_with_enough_of_a_run_that_is_over_hears_how_it_ended(dolphin, job, exit_code, state, code):
    dolphin.fake = {"steps": 20_000, "pause_s": 0, "exit": exit_code}  # more than a pipe holds
    dolphin.run("launch", job, "-y", expect=code)
    (run,) = dolphin.run_ids()
    process = dolphin.start("logs")
    assert process.stdout is not None
    assert process.stdout.readline() == "step 1 of 20000\n"
    process.stdout.close()
    assert process.wait(timeout=60) == code
    said = process.stderr.read()
    assert f"{run}: {state}" in said
    assert "goes on" not in said
    assert "stop it" not in said


def test_a_run_that_down_killed_does_not_read_as_a_reboot(dolphin, job):
    dolphin.fake = LONG
    dolphin.run("launch", job, "-y", "-d")
    dolphin.wait_for_step(2)
    dolphin.run("down", "--now")
    status = dolphin.status()
    assert status["state"] == "cancelled"
    assert "dolphin down" in status["detail"]
    assert "reboot" not in status["detail"]


def test_a_run_that_was_killed_by_hand_is_not_called_cancelled_by_a_later_down(dolphin, job):
    dolphin.fake = LONG
    dolphin.run("launch", job, "-y", "-d")
    status = dolphin.wait_for_step(2)
    record = json.loads((Path(status["folder"]) / "record.json").read_text())
    os.kill(record["handle"]["pid"], signal.SIGKILL)
    wait_until(lambda: dolphin.status()["state"] == "lost")
    assert "lost" in dolphin.run("down").stderr
    status = dolphin.status()
    assert status["state"] == "lost"
    assert "killed, or a reboot" in status["detail"]


def failed_start(dolphin: Dolphin, run: str = "demo-251123-101010-abcd", backend: str = "docker") -> Path:
    """The record of a start that its backend refused; there is no engine to ask about it."""
    folder = dolphin.home / "runs" / run
    folder.mkdir(parents=True)
    record = {"run_id": run, "name": "demo", "backend": backend, "created_at": 1.0, "submissions": 1,
              "submit_error": {"reason": "backend", "message": "no engine answers; start it"}}  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    dolphin.extra_environment = {"DOCKER_HOST": f"unix://{dolphin.home}/none.sock"}
    return folder


@pytest.mark.parametrize("backend", ["docker", "sky"])
def test_one_failed_start_on_an_engine_that_is_gone_does_not_spoil_every_later_status(dolphin, backend):
    failed_start(dolphin, backend=backend)
    status = dolphin.status()
    assert (status["state"], status["detail"]) == ("failed", "was not started: no engine answers; start it")
    done = dolphin.run("status", "--all")
    assert "failed" in done.stdout
    assert "there is no run" not in done.stderr
    assert "was not started: no engine answers" in dolphin.run("logs", expect=1).stderr
    assert dolphin.run("logs", "--no-follow").returncode == 0


def test_a_run_that_cannot_be_asked_about_is_still_a_run(dolphin):
    folder = failed_start(dolphin)
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"submit_error": None, "handle": {"container": "c"}}))
    done = dolphin.run("status", "--all", expect=4)
    assert "there is no run" not in done.stderr
    assert folder.name in done.stderr
    dolphin.run("forget", folder.name, expect=4)
    assert (folder / "record.json").exists()


def test_a_failed_start_can_be_forgotten_without_its_engine(dolphin):
    folder = failed_start(dolphin)
    assert "forgotten" in dolphin.run("forget", folder.name).stderr
    assert not folder.exists()
    asked = failed_start(dolphin, "demo-251123-101010-bcde", "sky")
    (asked / "sky-request").write_text("somebody took it in")
    assert "not known" in dolphin.run("forget", asked.name, expect=4).stderr
    assert asked.exists()


@pytest.mark.parametrize("backend", ["docker", "sky"])
def test_down_of_a_failed_start_needs_no_engine_to_know_that_nothing_of_it_runs(dolphin, backend):
    folder = failed_start(dolphin, backend=backend)
    said = dolphin.run("down").stderr
    assert "was not started: no engine answers; start it" in said
    assert f"{backend} never took it in, so nothing of it runs" in said
    (folder / "sky-request").write_text("somebody took it in")
    dolphin.run("down", expect=4)
    (folder / "sky-request").unlink()
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"submissions": 2}))
    dolphin.run("down", expect=4)  # an earlier start may have left something


def test_forgetting_a_run_keeps_its_results_and_says_where(dolphin, job):
    dolphin.fake = LONG
    dolphin.run("launch", job, "-y", "-d")
    dolphin.wait_for_step(2)
    (run,) = dolphin.run_ids()
    assert "dolphin down" in dolphin.run("forget", run, expect=2).stderr
    dolphin.run("down")
    folder = dolphin.home / "runs" / run
    said = dolphin.run("forget", run).stderr
    assert f"kept: {folder / 'checkpoints'}" in said
    assert [path.name for path in folder.iterdir()] == ["checkpoints"]
    assert "there is no run" in dolphin.run("status").stderr


def test_what_cannot_start_is_told_before_the_question_and_leaves_no_run(dolphin, job):
    dolphin.extra_environment = {"DOCKER_HOST": f"unix://{dolphin.home}/none.sock"}
    master, slave = pty.openpty()
    process = dolphin.start("launch", job, "--on", "docker", stdin=slave)
    _, err = process.communicate(timeout=60)
    os.close(master)
    os.close(slave)
    assert process.returncode == 4
    assert "none.sock" in err
    assert "Start it" not in err
    assert dolphin.run_ids() == []
    assert "none.sock" in dolphin.run("launch", job, "--on", "docker", "-y", expect=4).stderr
    assert dolphin.run_ids() == []
