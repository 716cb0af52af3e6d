"""What every Backend does, whatever runs beneath it: the suite that an implementation joins by an entry in BACKENDS_TESTED.

An entry makes a `Bench`: a backend, and how to submit a run of the fake trainer that behaves as wished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.main import get_command

from launcher.backends.base import (
    BACKENDS,
    Abilities,
    Backend,
    Submission,
    able_backends,
    backend_class,
    checks_of,
    get_backend,
)
from launcher.backends.checks import Check
from launcher.backends.home import processes
from launcher.cli import app
from launcher.jobfile.load import load_job
from launcher.jobfile.settle import settle
from launcher.jobfile.spec import JobSpec
from launcher.runs import ledger
from launcher.runs.errors import BackendError, BadUsage
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState, is_over
from tests.support.dolphin_cli import FAKE_TRAINER, wait_until, write_job
from trainer.run.run_folder import write_atomic
from trainer.run.spec import NodeJob


@dataclass
class Bench:
    backend: Backend
    job: JobSpec

    def record(self) -> RunRecord:
        """A run in the ledger that nothing was submitted of."""
        record = ledger.create(ledger.new_id("contract"), "contract", self.backend.name)
        place = self.backend.place(self.job, record.run_id, record.folder, 1)
        train = settle(self.job, place, run_id=record.run_id, zero=0)
        write_atomic(record.files.train_json, train.model_dump_json())
        return record

    def submit(self, record: RunRecord | None = None, **wish: Any) -> RunRecord:
        record = self.unrecorded(record, **wish)
        handle = record.handle
        return ledger.update(record, handle=json.loads(json.dumps(handle)), submitted_at=1.0)

    def unrecorded(self, record: RunRecord | None = None, **wish: Any) -> RunRecord:
        """As a launcher that died between submit and record left it on disk; the handle is in the returned one only."""
        record = record or self.record()
        record = ledger.update(record, submissions=record.submissions + 1, handle=None, down_requested_at=None)
        train = record.files.train_json.read_text()
        job = self.job.model_copy(update={"env": {**self.job.env, "FAKE": json.dumps(wish)}})
        submission = Submission(record, job, NodeJob.model_validate_json(train), secrets={"FAKE_TOKEN": SECRET})
        handle = self.backend.submit(submission)
        import dataclasses

        return dataclasses.replace(record, handle=handle)

    def end(self, record: RunRecord) -> RunState:
        return wait_until(lambda: (s := self.backend.status(record).state) and is_over(s) and s)

    def reached(self, record: RunRecord, step: int) -> None:
        wait_until(lambda: f'"step": {step},'.encode() in (self.backend.read_file(record, "metrics.jsonl") or b""))

    def log(self, record: RunRecord) -> str:
        return "".join(chunk.text for chunk in self.backend.logs(record))


SECRET = "tell-nobody-0451"
LONG = {"steps": 3000, "pause_s": 0.02}
BACKENDS_TESTED = ["local"]


@pytest.fixture(params=BACKENDS_TESTED)
def bench(request, tmp_path, monkeypatch) -> Iterator[Bench]:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOLPHIN_SOURCE", str(FAKE_TRAINER))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    backend = get_backend(request.param)
    yield Bench(backend, load_job(write_job(tmp_path / "job")))
    for record in ledger.all_runs():
        assert backend.down(record, 0).is_gone


def test_every_name_is_a_backend_of_that_name(bench):
    assert isinstance(bench.backend, Backend)
    assert bench.backend.name in BACKENDS
    with pytest.raises(BadUsage, match="choose one of"):
        get_backend("cloud9")


def test_a_run_to_its_end(bench, tmp_path):
    record = bench.submit(steps=5)
    assert bench.end(record) is RunState.SUCCEEDED
    status = bench.backend.status(record)
    assert status.exit_code == 0
    assert bench.log(record) == "".join(f"step {n} of 5\n" for n in range(1, 6))
    assert json.loads(bench.backend.read_file(record, "outcome.json") or b"")["state"] == "done"
    assert bench.backend.read_file(record, "no-such.json") is None
    copy = bench.backend.fetch(record, "model", tmp_path / "mine")
    assert (copy / "config.json").read_text() == "{}"
    with pytest.raises(BackendError, match="not an empty folder"):
        bench.backend.fetch(record, "model", tmp_path / "mine")
    assert (bench.backend.fetch(record, "log", tmp_path / "logs")).read_text().startswith("step 1")
    with pytest.raises(BackendError, match="no checkpoints"):
        bench.backend.fetch(record, "checkpoints", tmp_path / "saves")
    assert not (tmp_path / "saves").exists()


@pytest.mark.parametrize(
    ("wish", "state"),
    [
        ({"exit": 64, "reason": "bad row 7"}, RunState.BAD_INPUT),
        ({"exit": 1, "reason": "loss is nan"}, RunState.FAILED),
    ],
)
def test_how_the_trainer_ended_is_how_the_run_ended(bench, wish, state):
    record = bench.submit(steps=1, **wish)
    assert bench.end(record) is state
    assert wish["reason"] in bench.backend.status(record).detail


def test_a_trainer_that_vanished_is_lost_never_running(bench):
    record = bench.submit(steps=5, vanish_at=3)
    assert bench.end(record) in (RunState.LOST, RunState.FAILED)
    assert "resume" in bench.backend.status(record).detail


def test_a_run_that_was_never_submitted_is_lost_not_pending(bench):
    record = bench.record()
    assert bench.backend.status(record).state is RunState.LOST
    assert bench.backend.find(record.run_id) is None
    assert bench.log(record) == ""
    assert bench.backend.down(record, 0).is_gone


def test_a_run_whose_launcher_died_before_recording_it_is_found_by_its_label(bench):
    record = ledger.load(bench.unrecorded(**LONG).folder)
    assert record.handle is None
    assert bench.backend.find(record.run_id) is not None
    assert bench.backend.status(record).state is RunState.RUNNING
    with pytest.raises(BackendError, match="dolphin down"):
        bench.unrecorded(record)
    report = bench.backend.down(record, 0)
    assert report.is_gone
    assert report.was_killed
    assert bench.backend.find(record.run_id) is None


def test_no_line_of_the_log_twice_and_none_lost_whoever_reads_on(bench):
    record = bench.submit(steps=300, pause_s=0.002)
    text, cursor = "", ""
    while True:
        is_ended = is_over(bench.backend.status(record).state)
        for chunk in get_backend(bench.backend.name).logs(record, cursor):  # each time as another process would
            assert chunk.text.endswith("\n")
            text, cursor = text + chunk.text, json.loads(json.dumps(chunk.cursor))
        if is_ended:
            break
    assert text == "".join(f"step {n} of 300\n" for n in range(1, 301))


def test_a_file_is_read_from_where_one_left_off(bench):
    record = bench.submit(steps=3)
    bench.end(record)
    whole = bench.backend.read_file(record, "metrics.jsonl")
    assert bench.backend.read_file(record, "metrics.jsonl", 10) == whole[10:]
    assert bench.backend.read_file(record, "metrics.jsonl", len(whole)) == b""


def test_down_gives_the_trainer_time_to_save_and_twice_is_fine(bench):
    record = bench.submit(**LONG)
    bench.reached(record, 3)
    record = ledger.update(record, down_requested_at=1.0)
    assert bench.backend.status(record).state is RunState.STOPPING
    report = bench.backend.down(record, 60)
    assert report.is_gone
    assert not report.was_killed
    assert bench.backend.status(record).state is RunState.CANCELLED
    assert json.loads(bench.backend.read_file(record, "outcome.json") or b"")["state"] == "preempted"
    again = bench.backend.down(record, 60)
    assert again.is_gone
    assert "nothing" in again.detail


def test_a_resume_is_not_judged_by_the_outcome_of_the_attempt_before(bench):
    record = bench.submit(steps=1, exit=1)
    assert bench.end(record) is RunState.FAILED
    record = bench.submit(record, **LONG)
    assert bench.backend.status(record).state is RunState.RUNNING
    assert bench.backend.down(record, 0).is_gone
    assert bench.backend.status(record).state is RunState.LOST


def test_a_secret_reaches_the_trainer_and_no_file_or_argument(bench, tmp_path):
    record = bench.submit(show_secret_length=True, **LONG)
    bench.reached(record, 3)
    assert f"secret of {len(SECRET)} letters" in bench.log(record)
    for process in processes.of_run(record.run_id):
        assert SECRET not in " ".join(process.cmdline())
    bench.backend.down(record, 60)
    held = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == []


# What only processes of this machine can get wrong.


def local_only(bench: Bench) -> None:
    if bench.backend.name != "local":
        pytest.skip("about processes of this machine")


def pids_of(record: RunRecord) -> set[int]:
    return {process.pid for process in processes.of_run(record.run_id)}


def test_a_pid_that_was_given_to_another_process_is_not_the_run(bench):
    local_only(bench)
    record = bench.submit(steps=1, vanish_at=1)
    wait_until(lambda: not pids_of(record))
    mine = processes.identify(os.getpid())
    assert mine is not None
    record = ledger.update(record, handle=record.handle | {"pid": mine.pid})
    assert bench.backend.status(record).state is RunState.LOST
    assert bench.backend.down(record, 0).is_gone
    assert psutil.pid_exists(os.getpid())


@pytest.mark.parametrize("is_unmarked", [False, True])
def test_down_ends_workers_with_sessions_of_their_own_that_ignore_it(bench, is_unmarked):
    local_only(bench)
    record = bench.submit(stubborn=True, workers=2, unmarked=is_unmarked, **LONG)
    bench.reached(record, 1)
    root = processes.Identity(record.handle["pid"], record.handle["started"])
    pids = {process.pid for process in processes.of_run(record.run_id, root)}
    assert len(pids) == 3
    report = bench.backend.down(record, 0.3)
    assert report.is_gone
    assert report.was_killed
    assert [pid for pid in pids if processes.identify(pid)] == []


def test_a_worker_without_the_marker_that_a_clean_stop_left_behind_is_ended(bench):
    local_only(bench)
    record = bench.submit(workers=1, unmarked=True, leave=True, **LONG)
    bench.reached(record, 1)
    root = processes.Identity(record.handle["pid"], record.handle["started"])
    pids = {process.pid for process in processes.of_run(record.run_id, root)}
    assert len(pids) == 2
    assert bench.backend.down(record, 2).is_gone
    assert [pid for pid in pids if processes.identify(pid)] == []
    assert bench.backend.status(record).exit_code == 75


def test_workers_that_outlive_a_killed_supervisor_are_told_and_ended(bench):
    local_only(bench)
    record = bench.submit(workers=1, vanish_at=3, steps=9)
    assert bench.end(record) is RunState.LOST
    assert "1 of its processes still run" in bench.backend.status(record).detail
    with pytest.raises(BackendError, match="dolphin down"):
        bench.submit(record)
    assert bench.backend.down(record, 0.2).is_gone
    assert pids_of(record) == set()


def test_a_run_of_another_machine_is_not_called_gone(bench):
    local_only(bench)
    record = bench.submit(**LONG)
    elsewhere = ledger.update(record, handle={"pid": 1, "started": "x", "host": "elsewhere"})
    assert bench.backend.status(elsewhere).state is RunState.LOST
    assert "elsewhere" in bench.backend.status(elsewhere).detail
    with pytest.raises(BackendError, match="runs on elsewhere"):
        bench.backend.down(elsewhere, 0)
    ledger.update(record, handle=record.handle)


def test_more_ranks_than_gpus_is_refused(bench, monkeypatch):
    local_only(bench)
    from launcher.backends.home import machine

    monkeypatch.setattr(machine, "local_gpus", lambda: [("L40S", 46068)])
    assert bench.backend.place(bench.job, "r", Path("/r"), None).nproc == 1
    assert bench.backend.place(bench.job, "r", Path("/r"), None).device == "cuda"
    with pytest.raises(BadUsage, match="1 GPUs"):
        bench.backend.place(bench.job, "r", Path("/r"), 2)


def test_every_backend_says_what_it_can_do_without_being_reached() -> None:
    """A command must be able to refuse, and to name who could, where engine, cloud and libraries are absent."""
    for name in BACKENDS:
        found = backend_class(name)
        assert found.name == name
        assert isinstance(found.abilities, Abilities)
        assert all(isinstance(finding, Check) and finding.backend == name for finding in checks_of(name))
    assert able_backends(lambda abilities: abilities.has_many_nodes)
    stated = {option for name in BACKENDS for option in backend_class(name).abilities.options}
    offered = {parameter.name for parameter in get_command(app).commands["launch"].params}  # type: ignore[attr-defined]
    assert stated <= offered, "an option of a backend that the command line does not have"


def test_a_preflight_starts_and_writes_nothing(bench, tmp_path):
    record = bench.record()
    train = NodeJob.read(record.files.train_json)
    before = sorted(tmp_path.rglob("*"))
    assert isinstance(bench.backend.preflight(bench.job, train, {}), list)
    assert sorted(tmp_path.rglob("*")) == before
    assert bench.backend.find(record.run_id) is None


def test_what_makes_a_start_impossible_is_known_before_it(bench, monkeypatch):
    """The same refusal as the submit's, in words and reason, without a run to blame."""
    local_only(bench)
    import importlib.util

    record = bench.record()
    train = NodeJob.read(record.files.train_json)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    with pytest.raises(BackendError, match=r"dolphin-launcher\[train\]"):
        bench.backend.preflight(bench.job, train, {})
