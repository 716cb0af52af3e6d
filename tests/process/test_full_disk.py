"""A disk without room ends a run as failed, with its cause where everybody looks: never lost, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.runs.copying import copy_folder
from launcher.runs.errors import BackendError
from tests.support import tiny_job
from tests.support.dolphin_cli import Dolphin, write_job
from trainer.run.run_folder import RunDir


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mount: needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int) -> Path:
    """Take all room of the file system but so much."""
    path = folder / "somebody-elses"
    found = os.statvfs(folder)
    with open(path, "wb") as handle:
        try:
            handle.write(b"\1" * max(0, found.f_bavail * found.f_frsize - leave_bytes))
        except OSError:
            pass
    return path


def left_over(run: RunDir) -> list[str]:
    names = [path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()]
    return [
        name
        for name in names
        if ".writing-" in name or name.rpartition("/")[2].startswith((".outcome", ".rank", ".reserve"))
    ]


@pytest.mark.parametrize("leave_bytes", [0, 250_000], ids=["at once", "at a save"])
def test_a_disk_that_fills_up_is_named_in_the_outcome(small: Path, leave_bytes: int) -> None:
    tiny_job.train(tiny_job.write_job(small, "first", train={"max_steps": 1}))
    run = tiny_job.write_job(small, "full", nproc=2, train={"max_steps": 400}, checkpoint={"every": {"steps": 1}})
    supervisor = tiny_job.start(run, TMPDIR="/tmp")
    while supervisor.poll() is None and not any("loss" in line for line in run.read_metrics()):
        time.sleep(0.05)
    assert supervisor.poll() is None, run.log.read_text()[-2000:]
    fill(small, leave_bytes)
    assert supervisor.wait(tiny_job.TIMEOUT_S) == 1, run.log.read_text()[-3000:]
    outcome = json.loads(run.outcome.read_text())
    assert (outcome["state"], outcome["exit_code"]) == ("failed", 1)
    assert f"the disk of {small}" in outcome["reason"]
    assert "is full" in outcome["reason"]
    assert "Traceback" not in run.log.read_text()
    assert left_over(run) == []
    events = [event["event"] for event in run.read_events()]
    assert events[-1] == "finished"
    assert "restarting" not in events, "a full disk is no better the second time"


def test_data_that_does_not_fit_is_one_line(small: Path) -> None:
    run = tiny_job.write_job(small, "full")
    fill(small, 60_000)
    assert tiny_job.start(run, TMPDIR="/tmp").wait(tiny_job.TIMEOUT_S) == 1
    outcome = json.loads(run.outcome.read_text())
    assert outcome["state"] == "failed"
    assert "is full" in outcome["reason"]
    assert "Traceback" not in run.log.read_text()
    assert not list((small / "cache" / "data").glob("*.tmp-*"))


def test_a_log_that_takes_nothing_ends_no_run(tmp_path: Path) -> None:
    """/dev/full, in place of log.txt: every line is lost, and the model is made."""
    run = tiny_job.write_job(tmp_path, "silent", train={"max_steps": 3})
    command = [*tiny_job.command(run)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=full, env=tiny_job.environment(), timeout=tiny_job.TIMEOUT_S)
    assert done.returncode == 0
    assert json.loads(run.outcome.read_text())["state"] == "done"
    assert (run.model / "config.json").exists()


def test_commands_on_a_full_home_say_so_in_a_line_and_leave_nothing_half_written(small: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    fill(small, leave_bytes=0)
    dolphin = Dolphin(small / "home")
    for command in (("launch", job, "-y"), ("data", job)):
        said = dolphin.run(*command, expect=1).stderr.splitlines()
        assert [line for line in said if line.startswith("dolphin: ")] == said[-1:], said
        assert "the disk of" in said[-1]
        assert "is full" in said[-1]
    dolphin.run("plan", job)
    dolphin.run("status", "--all")
    assert [path for path in (small / "home").rglob("*") if path.is_file()] == []


def test_a_fetch_into_a_full_disk_names_the_disk_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(os.urandom(1 << 20))
    filler = fill(small, leave_bytes=1 << 16)
    with pytest.raises(BackendError, match=r"the disk of .* is full"):
        copy_folder(tmp_path / "model", small / "model")
    assert list(small.iterdir()) == [filler]
