"""Answers that nobody finds again: `dolphin samples`, the table of evaluations, the line of the status, and what was not spent."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.commands import samples
from launcher.follow.attend import unspent
from launcher.follow.run_view import RunView
from launcher.follow.screen import evaluation_table
from launcher.runs.errors import BadUsage
from trainer.run.run_folder import EventKind

LINES = [
    {"step": step, "number": number, "set": "mine", "question": f"What is {number}?", "expected": "It.", "answer": f"{answer}{step}.",
     "scores": {"contains": 0.0}}
    for step, answer in ((0, "Um"), (5, "Old"), (10, "It"), (5, "Is"))  # 5 twice: it was asked again after a resume
    for number in (0, 1)
]  # fmt: skip


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Any:
    data = b'{"torn": \n' + "".join(json.dumps(line) + "\n" for line in LINES).encode()
    backend = SimpleNamespace(
        read_file=lambda record, name, offset: data if name == "samples.jsonl" and record.has else None
    )
    monkeypatch.setattr(samples, "get_backend", lambda _: backend)
    return SimpleNamespace(run_id="r", backend="local", has=True)


def test_answers_stand_side_by_side_over_the_steps(record: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert samples.samples_command(record, 5, json_wanted=False) == 0
    shown = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [line[12:] for line in shown] == [
        "What is 0?",
        "It.",
        "Um0. [contains 0]",
        "Is5. [contains 0]",
        "It10. [contains 0]",
    ]
    samples.samples_command(record, 2, json_wanted=False)
    told = capsys.readouterr()
    assert "Is5" not in told.out
    assert "1 evaluations between are not shown" in told.err
    samples.samples_command(record, 5, json_wanted=True)
    assert [(line["number"], line["answer"]) for line in json.loads(capsys.readouterr().out)][:3] == [
        (0, "Um0."), (0, "Is5."), (0, "It10.")
    ]  # fmt: skip
    record.has = False
    with pytest.raises(BadUsage, match=r"evaluate\.prompts"):
        samples.samples_command(record, 5, json_wanted=False)


def test_the_steps_shown_are_the_first_the_last_and_some_between() -> None:
    assert samples.spread([0, 3, 6, 9, 12, 15, 18], 3) == [0, 9, 18]
    assert samples.spread([0, 3], 5) == [0, 3]
    assert samples.spread([0, 3, 6], 1) == [6]


def view_of(tmp_path: Path) -> RunView:
    view = RunView()
    view.add_metric({"step": 0, "epoch": 0.0, "eval_loss": 4.0, "drawn/loss": 4.0, "mine/loss": 5.0, "time": 1.0})
    measures = {"eval_loss": 2.0, "eval_entropy": 1.0, "drawn/loss": 2.0, "mine/loss": 3.0, "contains": 0.25}
    for step, is_best in ((10, True), (20, False)):
        line = view.add_event({
            "event": EventKind.EVALUATED, "attempt": 1, "step": step, "epoch": step / 10, "eval_loss": 2.0,
            "measures": measures, "is_best": is_best,
        })  # fmt: skip
        assert line is not None
    return view


def test_every_set_and_score_has_its_column_and_the_best_is_marked(tmp_path: Path) -> None:
    view, out = view_of(tmp_path), io.StringIO()
    assert view.story[0] == "validation loss 2.0000, mine/loss 3.0000, contains 0.25 at step 10, the best so far"
    evaluation_table(view, out)
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert rows[0] == ["step", "epoch", "validation", "loss", "mine/loss", "contains"]
    assert rows[2][-1] == "best"
    assert rows[3][-1] == "0.25"


def test_what_an_early_stop_did_not_spend_is_told(tmp_path: Path) -> None:
    view = view_of(tmp_path)
    line = view.add_event({
        "event": EventKind.STOPPED_EARLY, "attempt": 1, "step": 20, "metric": "eval_loss", "best_step": 10,
        "steps_left": 1200, "seconds_left": 5400.0,
    })  # fmt: skip
    assert line == "stopped early at step 20: eval_loss was best at step 10; 1200 steps are not trained"
    assert view.stopped_early is not None
    assert unspent(view.stopped_early, 4.0) == "1,200 steps were not trained: about 1 h 30 min, $6.00 not spent"
    assert unspent(view.stopped_early, None) == "1,200 steps were not trained: about 1 h 30 min"
    assert unspent({"steps_left": "x"}, 4.0) == "it stopped early"
