"""`dolphin status` without a run: the newest one, or a table of those that are active where several are."""

import pytest

from launcher.backends.base import BackendStatus
from launcher.cli import app
from launcher.commands import runs
from launcher.follow.run_view import RunView
from launcher.follow.status import Observation
from launcher.runs import ledger
from launcher.runs.errors import BackendError
from launcher.runs.states import RunState
from tests.support.written_run import write

asked: list[str] = []
"""Names of the runs that were looked at, in order."""


@pytest.fixture
def states(tmp_path, monkeypatch):
    asked.clear()
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    found = {}

    def observed(record):
        asked.append(record.name)
        if record.name not in found:
            raise BackendError("nobody answers")
        return Observation(record, BackendStatus(found[record.name]), RunView(), {})

    monkeypatch.setattr(runs, "observe_record", observed)
    return found


def shown(capsys, *arguments):
    app(args=["status", *arguments], prog_name="dolphin", standalone_mode=False)
    return capsys.readouterr().out


def test_several_active_runs_are_a_table_and_one_is_told_whole(states, capsys):
    names = {"first": RunState.RUNNING, "second": RunState.QUEUED, "third": RunState.SUCCEEDED}
    for name, state in names.items():
        write(name, [], [], {"state": "done", "exit_code": 0} if state is RunState.SUCCEEDED else None)
    states.update(names)
    text = shown(capsys)
    assert "first" in text
    assert "second" in text
    assert "third" not in text
    states["second"] = RunState.FAILED
    assert shown(capsys).startswith("run             third")


def test_a_backend_that_does_not_answer_hides_no_other_run(states, capsys):
    states.update(first=RunState.RUNNING, second=RunState.RUNNING)
    for name in ("silent", "first", "second"):
        write(name, [], [])
    text = shown(capsys)
    assert "first" in text
    assert "second" in text


def test_a_backend_is_asked_once_about_each_run_that_may_be_active_and_about_no_other(states, capsys):
    states.update(first=RunState.RUNNING, second=RunState.RUNNING, done=RunState.SUCCEEDED, stopped=RunState.PREEMPTED)
    write("done", [], [], {"state": "done", "exit_code": 0})
    stopped = write("stopped", [], [], {"state": "preempted", "exit_code": 75})
    ledger.update(ledger.load(stopped.folder), down_requested_at=1.0)
    write("first", [], [])
    shown(capsys)
    assert asked == ["first"]
    asked.clear()
    write("second", [], [])
    shown(capsys)
    assert sorted(asked) == ["first", "second"]
