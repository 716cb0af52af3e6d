"""Requests to stop or save: none is missed, and none kills a rank in the middle of its save."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from trainer.run.exits import BadInput, EndKind, LimitReached, Preempted, TrainingFailed
from trainer.run.run_folder import RunDir
from trainer.supervise.rank_guard import rank_guard, read_rank_end
from trainer.supervise.stop_flag import POLL_EVERY_S, SECOND_SIGNAL_AFTER_S, StopFlag, StopRequest, ask_ranks_to_stop


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    run.attempt_dir(1).mkdir(parents=True)
    return run


@pytest.fixture(autouse=True)
def _own_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_noted_and_a_second_one_right_behind_it_kills_nothing(run: RunDir) -> None:
    clock, left = Clock(), []
    flag = StopFlag(run.path, 1, 3, leave_at_once=left.append, clock=clock)
    flag.install()
    assert flag.requested is None
    signal.raise_signal(signal.SIGTERM)
    clock.now += SECOND_SIGNAL_AFTER_S - 0.1
    signal.raise_signal(signal.SIGTERM)
    assert left == []
    assert flag.requested is not None
    assert flag.requested.reason == "SIGTERM to rank 3"
    clock.now += 0.2
    signal.raise_signal(signal.SIGINT)
    assert left == ["second signal (SIGINT) to rank 3"]


def test_the_supervisors_word_and_the_files_are_seen_within_a_second(run: RunDir) -> None:
    clock = Clock()
    flag = StopFlag(run.path, 1, 0, clock=clock)
    assert flag.requested is None
    assert not flag.save_requested
    (run.path / "SAVE").touch()
    ask_ranks_to_stop(run.attempt_dir(1), StopRequest("spot notice"))
    assert flag.requested is None, "looked at the files twice within a second"
    clock.now += POLL_EVERY_S
    assert flag.save_requested
    assert flag.requested is not None
    assert flag.requested.reason == "spot notice"
    flag.saved()
    assert not (run.path / "SAVE").exists()
    clock.now += POLL_EVERY_S
    assert not flag.save_requested


def test_a_stop_file_stops(run: RunDir) -> None:
    (run.path / "STOP").touch()
    flag = StopFlag(run.path, 1, 0)
    assert flag.requested is not None
    assert flag.requested.reason == "file STOP in the run folder"
    (run.path / "STOP").write_text("the slack is spent\nand more\n")
    again = StopFlag(run.path, 1, 0)
    assert again.requested is not None
    assert again.requested.reason == "the slack is spent", "whoever asks may say why"


@pytest.mark.parametrize(
    ("error", "kind", "code", "final"),
    [
        (BadInput("row 7"), EndKind.BAD_INPUT, 64, False),
        (Preempted("at step 3"), EndKind.PREEMPTED, 75, False),
        (TrainingFailed("the loss is nan"), EndKind.FAILED, 1, True),
        (ZeroDivisionError("division by zero"), EndKind.FAILED, 1, False),
        (LimitReached(EndKind.BUDGET_REACHED, "at step 3"), EndKind.BUDGET_REACHED, 76, False),
        (KeyboardInterrupt(), EndKind.FAILED, 1, False),
        (MemoryError(), EndKind.FAILED, 1, False),
    ],
)
def test_every_way_to_end_leaves_its_word_and_its_code(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: EndKind, code: int, final: bool
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)

    def work() -> None:
        with rank_guard(run.path, 1, 0) as rank:
            rank.heartbeat.step(3)
            raise error

    with pytest.raises(SystemExit) as left:
        work()
    assert left.value.code == code
    end = read_rank_end(run.attempt_dir(1), 0)
    assert end is not None
    assert (end.kind, end.step, end.final, end.error) == (kind, 3, final, type(error).__name__)
    assert end.message


def test_a_preempted_rank_under_torchrun_does_not_set_torchrun_on_the_others(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(SystemExit) as left:
        with rank_guard(run.path, 1, 0):
            raise Preempted("at step 3")
    assert left.value.code == 0


def test_a_rank_that_finishes_says_so_and_its_first_word_stands(run: RunDir) -> None:
    with rank_guard(run.path, 1, 0):
        pass
    with pytest.raises(SystemExit):
        with rank_guard(run.path, 1, 0):
            raise ValueError("on the way out")
    end = read_rank_end(run.attempt_dir(1), 0)
    assert end is not None
    assert end.kind is EndKind.DONE
    assert json.loads((run.attempt_dir(1) / "rank-0.json").read_text())["kind"] == "done"
