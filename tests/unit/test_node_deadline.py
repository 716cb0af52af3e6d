"""The watch on a node. The disasters: a spot machine that is kept until no start on demand fits before the deadline; one that is given
up for nothing; a run that ends because a record is strange."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.sky.node import deadline
from launcher.backends.sky.node.deadline import MACHINE, PROGRESS, Watch

TERMS = {"deadline": 10_000.0, "tick_s": 100.0, "restart_s": 300.0, "save_s": 60.0, "end_s": 50.0}


class Node:
    """A run of 100 steps at 10 s each on a node that began at `began`, asked for 100 s before."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, began: float = 1000.0, **machine: Any) -> None:
        self.folder, self.now, self.began = folder, began, began
        monkeypatch.setattr(deadline.time, "time", lambda: self.now)
        monkeypatch.setenv(MACHINE, json.dumps({"asked_at": began - 100, **machine}) if machine else "")
        self.watch = Watch({"terms": TERMS}, str(folder), {"time": began, "setup_at": began - 10})

    def event(self, kind: str, **more: Any) -> None:
        self._append("events.jsonl", {"time": self.now, "event": kind, **more})

    def step(self, number: int) -> None:
        self._append("metrics.jsonl", {"time": self.now, "step": number, "loss": 1.0})

    def look(self, at: float, last: bool = False) -> None:
        self.now = at
        self.watch.look(last)

    def train(self, first: int, until: int, every_s: float = 10.0) -> None:
        for number in range(first, until + 1):
            self.step(number)
            self.look(self.now + every_s)

    @property
    def stop(self) -> str | None:
        path = self.folder / "STOP"
        return path.read_text() if path.exists() else None

    @property
    def progress(self) -> dict[str, Any]:
        return json.loads((self.folder / PROGRESS).read_text())

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with open(self.folder / name, "a") as handle:
            handle.write(json.dumps(record) + "\n")


def test_progress_is_what_the_next_decision_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path, monkeypatch, market="spot")
    node.event("phase", phase="preparing data")
    node.now += 40
    node.event("phase", phase="starting ranks")
    node.event("plan", total_steps=100)
    node.now += 20
    node.train(1, 20)
    node.event("checkpoint_saved", step=10, seconds=7.5)
    (tmp_path / "spent.json").write_text('{"usd": 1.25}')
    node.look(node.now, last=True)
    assert node.progress == {
        "total_steps": 100, "step": 10, "reached": 20, "seconds_a_step": 10.0, "save_s": 7.5, "restarts": 0,
        "restart_s": 100.0 + 60 - 40, "spent_usd": 1.25, "time": node.now, "left": None,
    }  # fmt: skip
    assert node.stop is None


def test_the_first_start_is_the_measure_until_a_restart_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for began, first_step_at, expected in (
        (1000.0, 1500.0, 600.0),
        (2000.0, 2100.0, 200.0),
        (3000.0, 3400.0, 500.0),
        (4000.0, 4010.0, 500.0),
    ):
        node = Node(tmp_path, monkeypatch, began, market="spot")
        node.event("plan", total_steps=100)
        node.now = first_step_at
        node.step(1)
        node.look(first_step_at + 1, last=True)
        assert node.progress["restart_s"] == expected


def on_spot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slack_s: float, **machine: Any) -> Node:
    """A node at step 10 with so much slack; a start on demand may take 2 x 200 + 60."""
    node = Node(tmp_path, monkeypatch, 10_000 - 50 - slack_s - 90 * 10 - 200, **({"market": "spot"} | machine))
    node.event("plan", total_steps=100)
    node.now += 100
    node.train(1, 10)
    return node


def test_a_spot_machine_is_kept_while_a_start_on_demand_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = on_spot(tmp_path, monkeypatch, slack_s=461)
    assert node.stop is None
    node.train(11, 60)
    assert node.stop is None  # slack keeps while it steps
    node.look(node.now + 30)  # a step that takes longer
    assert node.stop is not None
    assert node.stop.startswith("node given back: the deadline leaves ")
    assert node.progress["left"] == node.stop.strip()


def test_one_that_starts_too_slowly_is_given_back_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PROGRESS).write_text(
        json.dumps({"total_steps": 100, "reached": 0, "seconds_a_step": 10.0, "restart_s": 200.0, "save_s": 60.0})
    )
    node = Node(tmp_path, monkeypatch, 8000.0, market="spot")
    node.look(8000.0 + 950 - 460 - 101)
    assert node.stop is None
    node.look(8000.0 + 950 - 460 - 90)
    assert node.stop is not None


@pytest.mark.parametrize(
    "machine", [{"market": None}, {"market": "on demand"}, {"market": "on demand", "leave_at": 20_000.0}]
)
def test_a_machine_that_nobody_takes_away_is_not_given_back_for_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any]
) -> None:
    node = on_spot(tmp_path, monkeypatch, slack_s=100, **machine)
    node.train(11, 50, every_s=12)
    assert node.stop is None


def test_a_machine_on_demand_is_given_back_at_its_time_and_only_with_slack_for_a_vain_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = on_spot(tmp_path, monkeypatch, slack_s=461 + 2 * 200 + 100, market="on demand", leave_at=9000.0)
    node.train(11, 12)
    assert node.stop is None
    while node.now < 9020:
        node.train(node.watch.known["reached"] + 1, node.watch.known["reached"] + 1)
    assert str(node.stop).startswith("node given back: spot ")
    (tmp_path / "STOP").unlink()
    for name in (PROGRESS, "events.jsonl", "metrics.jsonl"):
        (tmp_path / name).unlink()
    short = on_spot(tmp_path, monkeypatch, slack_s=461 + 2 * 200, market="on demand", leave_at=100.0)
    assert short.stop is None


def test_a_node_that_no_strategy_sent_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would start it again on demand."""
    node = Node(tmp_path, monkeypatch, 9990.0)
    node.event("plan", total_steps=100)
    node.train(1, 20)
    assert node.stop is None
    assert node.progress["reached"] >= 1


def test_strange_records_and_a_full_disk_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Node(tmp_path, monkeypatch, market="spot")
    node.event("plan")
    node.event("plan", total_steps="many")
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": null, "loss": 1}\n[1]\n{"step": 1, "loss": 2, "ti')
    node.look(node.now + 10)
    node.look(node.now + 10, last=True)
    assert node.stop is None
    (tmp_path / PROGRESS).unlink(missing_ok=True)
    (tmp_path / PROGRESS).mkdir()
    node.look(node.now + 10, last=True)
    assert "progress.json could not be written" in capsys.readouterr().out


def test_without_terms_nothing_is_written(tmp_path: Path) -> None:
    watch = Watch({"terms": None}, str(tmp_path), {"time": 0.0, "setup_at": 0.0})
    watch.look(last=True)
    assert list(tmp_path.iterdir()) == []
