"""The policy where a zone must be asked. The disasters: a deadline missed for want of a zone that had none; a run that stays
on demand for ever, or leaves it for spot machines that are not there."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runs.policy import decide as policy
from launcher.runs.policy.decide import LONGER_STARTS
from launcher.runs.policy.live import Live, Progress, Terms
from launcher.runs.policy.sightings import HOUR
from launcher.runs.policy.situation import ON_DEMAND, OUT_OF_BUDGET, WAIT, Choice, Market
from tests.unit.test_policy import weather

SPOT_A = Choice(Market.SPOT, "a")


@pytest.fixture(autouse=True)
def coarse_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "WORK_POINTS", 8)
    monkeypatch.setattr(policy, "SLACK_POINTS", 6)


def live(deadline_h: float = 20.0, budget_usd: float | None = None, **spot: float) -> Live:
    return Live(Terms(deadline_h * HOUR, 3.06, spot or {"a": 0.97}, 600.0, budget_usd))


def left(work_h: float, restart_s: float = 720.0, spent_usd: float = 0.0) -> Progress:
    return Progress(work_h * HOUR, restart_s, 60.0, spent_usd)


def test_zones_that_nobody_asked_are_asked_first() -> None:
    assert live().next_machine(0.0, left(10)) == SPOT_A


def test_a_zone_that_took_a_machine_away_is_asked_again_after_a_tick_and_not_before() -> None:
    its = live(deadline_h=100)
    its.saw(0.0, {"a": True})
    its.saw(3 * HOUR, {"a": False})
    assert its.next_machine(3 * HOUR + 599, left(10)) == WAIT
    assert its.next_machine(3 * HOUR + 600, left(10)) == SPOT_A


def test_another_zone_is_taken_at_once() -> None:
    its = live(deadline_h=100, a=0.9, b=0.95)
    its.saw(0.0, {"a": True})
    its.saw(3 * HOUR, {"a": False})
    assert its.next_machine(3 * HOUR, left(10)) == Choice(Market.SPOT, "b")


def test_a_run_without_slack_takes_on_demand() -> None:
    assert live(deadline_h=10.3).next_machine(0.0, left(10)) == ON_DEMAND


def test_a_spot_machine_that_is_not_had_is_waited_for_no_longer_than_the_slack_allows() -> None:
    assert live(deadline_h=12).may_take_s(0.0, left(10)) == 2 * HOUR - LONGER_STARTS * 720 - 60
    assert live(deadline_h=10).may_take_s(0.0, left(10)) == 0.0


def test_spent_money_stops_a_run() -> None:
    its = live(budget_usd=10.0)
    assert its.next_machine(0.0, left(10, spent_usd=9.0)) == SPOT_A
    assert its.next_machine(0.0, left(10, spent_usd=9.9)) == OUT_OF_BUDGET


def test_a_machine_on_demand_is_left_once_spot_machines_are_likely_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "WORK_POINTS", 64)
    its = live(deadline_h=40)
    its.saw(0.0, {"a": False})
    at = its.leaves_on_demand_at(0.0, left(20, restart_s=180.0))
    assert at is not None
    assert 600 <= at < 6 * HOUR


def test_a_machine_on_demand_is_kept_where_slack_or_work_is_short() -> None:
    its = live(deadline_h=10.5)
    its.saw(0.0, {"a": False})
    assert its.leaves_on_demand_at(0.0, left(10)) is None
    assert live(deadline_h=10).leaves_on_demand_at(0.0, left(0.1)) is None
    assert Live(Terms(40 * HOUR, 3.06, {}, 600.0)).leaves_on_demand_at(0.0, left(10)) is None


@settings(max_examples=40, deadline=None)
@given(
    zones=weather(),
    restart_s=st.floats(30.0, 1500.0),
    work_h=st.floats(0.5, 6.0),
    spare=st.floats(0.0, 1.5),
    seed=st.integers(0, 2**16),
)
def test_no_deadline_is_missed_by_a_run_that_sees_nothing_but_answers(
    zones: dict[str, list[bool]], restart_s: float, work_h: float, spare: float, seed: int
) -> None:
    """Machines come and go by the weather; starts take up to what the reserve allows, those on spot up to ten times the measured."""
    generator = random.Random(seed)
    tick_s, work_s = 300.0, work_h * HOUR
    deadline_s = work_s * (1 + spare) + LONGER_STARTS * restart_s
    its = Live(Terms(deadline_s, 3.06, dict.fromkeys(zones, 0.97), tick_s))
    market, zone, now, done, starting, leaves_at = Market.NONE, "", 0.0, 0.0, 0.0, None

    def left_now() -> Progress:
        return Progress(work_s - done, restart_s, 0.0)

    while done < work_s - 1e-6:
        up = {name: trace[int(now / tick_s) % len(trace)] for name, trace in zones.items()}
        if market is Market.SPOT and not up[zone]:
            its.saw(now, {zone: False})
            market = Market.NONE
        slack = its.may_take_s(now, left_now())
        if market is Market.SPOT and (slack <= 0 or (starting > 0 and slack < tick_s)):
            market = Market.NONE  # the node leaves by itself
        if market is Market.ON_DEMAND and leaves_at is not None and now >= leaves_at and slack >= tick_s:
            market = Market.NONE
        while market is Market.NONE:
            choice = its.next_machine(now, left_now())
            if choice == WAIT:
                break
            if choice.market is Market.SPOT:
                zone = choice.zone or ""
                its.saw(now, {zone: up[zone]})
                if not up[zone]:
                    continue
            market = choice.market
            starting = restart_s * generator.uniform(0.2, 10.0 if market is Market.SPOT else LONGER_STARTS)
            leaves_at = its.leaves_on_demand_at(now, left_now()) if market is Market.ON_DEMAND else None
        used = tick_s
        if market is not Market.NONE:
            used = min(tick_s, starting + work_s - done)
            done += max(0.0, used - starting)
            starting = max(0.0, starting - tick_s)
        now += used
    assert now <= deadline_s + 1e-6
