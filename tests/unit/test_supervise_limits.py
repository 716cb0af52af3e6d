"""Deadline and budget on the node. The disasters: money spent beyond what was allowed; a run that ends with nothing to show;
one that is stopped a minute before it would have been done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.run.exits import EndKind
from trainer.run.limits import MARGIN, MARGIN_S, Limits
from trainer.run.paid import paid
from trainer.run.run_folder import RunDir, append_line
from trainer.supervise.limits import LOOK_EVERY_S, Watch
from trainer.supervise.outcome import Ended, PastEvents, write_outcome

HOUR = 3600.0
BEGAN = 1_000_000.0
STEP_S = 60.0
"""As planned."""


class Clock:
    now = BEGAN

    def __call__(self) -> float:
        return self.now


class Node:
    """A run folder under a watch, on a clock of its own."""

    def __init__(self, path: Path, limits: Limits, began: float = BEGAN) -> None:
        path.mkdir(exist_ok=True)
        self.run, self.clock, self.warned = RunDir(path), Clock(), list[dict[str, Any]]()
        self.clock.now = began
        self.event("attempt_started", began=began)
        self.watch = Watch(limits, PastEvents(self.run), self.warn, STEP_S, self.clock)

    def event(self, event: str, **fields: Any) -> None:
        append_line(self.run.events, {"time": self.clock.now, "event": event, "attempt": 1, **fields})

    def warn(self, **fields: Any) -> None:
        self.warned.append(fields)
        self.event("limit_near", **fields)

    def train(self, steps: int, step_s: float) -> tuple[int, EndKind | None]:
        """Steps that were done when the watch asked for the end, and for which."""
        for step in range(steps + 1):
            request = self.watch.look(step)
            if request is not None:
                return step, request.limit
            self.clock.now += step_s
        return steps, None


def test_a_budget_leaves_enough_for_the_save_and_the_export(tmp_path: Path) -> None:
    limits = Limits(budget_usd=10.0, price_usd_per_hour=2.0, save_s=120, export_s=600)
    node = Node(tmp_path, limits)
    node.event("plan", total_steps=1000)
    step, kind = node.train(1000, 60.0)
    assert kind is EndKind.BUDGET_REACHED
    left_s = (10.0 / 2.0 - step * 60 / HOUR) * HOUR - (MARGIN * 720 + MARGIN_S)
    assert 0 <= left_s < 120, "a step more, and it would not have been enough"
    assert [(w["limit"], w["of"]) for w in node.warned] == [("budget", 10.0)], "told once, at 80%"


def test_a_deadline_ends_the_run_before_it_passes(tmp_path: Path) -> None:
    node = Node(tmp_path, Limits(deadline_at=BEGAN + 10 * HOUR, save_s=60, export_s=300))
    node.event("plan", total_steps=1000)
    node.event("checkpoint_saved", step=0, seconds=600.0)
    step, kind = node.train(1000, 60.0)
    assert kind is EndKind.DEADLINE_REACHED
    assert step * 60 + MARGIN * 900 + MARGIN_S <= 10 * HOUR + 60, "a save as long as the one that was measured"
    assert step > 560
    assert node.warned[0]["limit"] == "deadline"


@pytest.mark.parametrize("limits", [{"deadline_at": BEGAN + 1000.0}, {"budget_usd": 1.0, "price_usd_per_hour": 3.6}])
def test_a_run_that_will_be_done_in_time_is_not_stopped_for_its_margin(
    tmp_path: Path, limits: dict[str, float]
) -> None:
    node = Node(tmp_path, Limits(**limits, save_s=50, export_s=300))
    node.event("plan", total_steps=64)
    assert node.train(64, 10.0) == (64, None)


def test_nothing_that_was_paid_before_is_forgotten(tmp_path: Path) -> None:
    """Another machine, two hours later: its first life counts until the last that was heard of it."""
    Node(tmp_path, Limits()).event("checkpoint_saved", step=3, seconds=1.0)
    run = RunDir(tmp_path)
    append_line(run.metrics, {"step": 9, "loss": 1.0, "time": BEGAN + 1 * HOUR})
    limits = Limits(budget_usd=10.0, price_usd_per_hour=6.0)
    node = Node(tmp_path, limits, began=BEGAN + 3 * HOUR)
    assert paid(run, limits, node.clock.now).usd == pytest.approx(6.0)
    node.event("plan", total_steps=10_000)
    step, kind = node.train(10_000, 60.0)
    assert kind is EndKind.BUDGET_REACHED
    assert 35 <= step <= 40, "of $10, $6 were spent"


def test_true_prices_of_nodes_the_controller_and_what_leaves_the_region_are_counted(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    append_line(run.nodes, {"time": BEGAN + 60, "setup_at": BEGAN, "price_usd_per_hour": 3.0})
    append_line(run.nodes, {"time": BEGAN + 5 * HOUR, "setup_at": BEGAN + 4 * HOUR, "price_usd_per_hour": 8.0})
    append_line(run.events, {"time": BEGAN + 2 * HOUR, "event": "checkpoint_saved", "step": 1})
    limits = Limits(price_usd_per_hour=1.0, upkeep_usd_per_hour=0.2, egress_usd_per_save=0.5)
    bill = paid(run, limits, BEGAN + 5 * HOUR)
    assert bill.hours == pytest.approx(2 + 1)
    assert bill.usd == pytest.approx(2 * 3.0 + 1 * 8.0 + 5 * 0.2 + 0.5)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    step_s=st.floats(1.0, STEP_S),
    ending_s=st.tuples(st.floats(0.0, 60.0), st.floats(0.0, 120.0)),
    slower=st.floats(0.5, 1.5),
    usd_per_hour=st.floats(0.5, 100.0),
    room_h=st.floats(0.12, 0.4),
)
def test_neither_is_ever_exceeded_whatever_a_run_is_like(
    tmp_path_factory: pytest.TempPathFactory, step_s: float, ending_s: tuple[float, float], slower: float,
    usd_per_hour: float, room_h: float,
) -> None:  # fmt: skip
    """Saves and exports that take up to half as long again as planned, and a request that falls just behind a step's beginning."""
    budget = usd_per_hour * room_h
    save_s, export_s = ending_s
    limits = {
        "time": Limits(deadline_at=BEGAN + room_h * HOUR, save_s=save_s, export_s=export_s),
        "money": Limits(budget_usd=budget, price_usd_per_hour=usd_per_hour, save_s=save_s, export_s=export_s),
    }
    for of, limit in limits.items():
        node = Node(tmp_path_factory.mktemp(of), limit)
        node.event("plan", total_steps=1_000_000)
        request = None
        while request is None:
            request = node.watch.look(int((node.clock.now - BEGAN) / step_s))
            node.clock.now += LOOK_EVERY_S
        ended = node.clock.now + step_s + slower * (save_s + export_s)
        assert ended <= BEGAN + max(room_h * HOUR, 1.5 * (save_s + export_s) + STEP_S + 20.0)
        used = (ended - BEGAN) / (room_h * HOUR)
        assert used > 0.4 or room_h * HOUR < 2 * (MARGIN * (save_s + export_s) + STEP_S + MARGIN_S), "it ends late, too"


def test_a_machine_that_was_found_too_late_still_exports_what_is_saved(tmp_path: Path) -> None:
    limits = Limits(deadline_at=BEGAN - 60.0)
    request = Node(tmp_path / "new", limits).watch.look(None)
    assert request is not None, "nothing is saved: not a cent more"
    node = Node(tmp_path / "old", limits)
    node.event("checkpoint_saved", step=3, seconds=1.0)
    assert node.watch.look(None) is None
    request = node.watch.look(0)
    assert request is not None, "the ranks stop after a step, and export"
    assert request.limit is EndKind.DEADLINE_REACHED


def test_without_a_price_nothing_is_said_to_be_known(tmp_path: Path) -> None:
    node = Node(tmp_path, Limits(budget_usd=0.01))
    assert node.train(5, HOUR) == (5, None)
    assert paid(node.run, Limits(), node.clock.now).usd is None


def test_the_watch_reads_the_records_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(tmp_path, Limits(deadline_at=BEGAN + HOUR))
    node.event("plan", total_steps=10_000)
    reads = 0
    read = RunDir.read_events

    def counted(run: RunDir) -> list[dict[str, Any]]:
        nonlocal reads
        reads += 1
        return read(run)

    monkeypatch.setattr(RunDir, "read_events", counted)
    node.train(100, LOOK_EVERY_S / 50)
    assert reads < 20


def test_the_outcome_has_planned_beside_paid(tmp_path: Path) -> None:
    limits = Limits(price_usd_per_hour=2.0, planned_hours=3.0, planned_usd=6.5)
    node = Node(tmp_path, limits)
    node.clock.now += HOUR
    node.event("exported", model="/model")
    write_outcome(PastEvents(node.run), Ended(EndKind.BUDGET_REACHED, "budget reached", 7, 1, 3.0), limits)
    outcome = node.run.read_outcome()
    assert outcome is not None
    assert (outcome["state"], outcome["exit_code"], outcome["model"]) == ("budget_reached", 76, "/model")
    assert outcome["planned"] == {"hours": 3.0, "usd": 6.5}
    assert outcome["paid"] == {"hours": 1.0, "usd": 2.0}
