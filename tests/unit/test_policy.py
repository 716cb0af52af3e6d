"""The policy for runs with a deadline. The disasters: a deadline missed; money spent on restarts that save nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runs.policy import decide as policy
from launcher.runs.policy import worth
from launcher.runs.policy.decide import LONGER_STARTS, decide, reserve_s
from launcher.runs.policy.sightings import HOUR, Sightings, Spells
from launcher.runs.policy.simulate import ALMOST_S, Job, simulate
from launcher.runs.policy.situation import ON_DEMAND, OUT_OF_BUDGET, WAIT, Choice, Market, Offer, Situation

SPOT_A = Choice(Market.SPOT, "a")
NOW = Situation(
    now_s=0.0,
    deadline_s=70 * HOUR,
    work_left_s=48 * HOUR,
    restart_s=720.0,
    save_s=60.0,
    until_next_s=600.0,
    market=Market.NONE,
    zone=None,
    is_starting=False,
    on_demand_usd_per_hour=3.06,
    spot=(Offer("a", 0.97),),
)


@pytest.fixture(autouse=True)
def coarse_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bound promises does not hang on the tables, and coarse ones take a millisecond."""
    monkeypatch.setattr(policy, "WORK_POINTS", 8)
    monkeypatch.setattr(policy, "SLACK_POINTS", 6)


def seen(**zones: bool) -> Sightings:
    sightings = Sightings()
    sightings.see(0.0, zones)
    return sightings


def with_slack(slack_s: float, **changes: object) -> Situation:
    return dataclasses.replace(NOW, deadline_s=NOW.work_left_s + slack_s, **changes)


@st.composite
def weather(draw: st.DrawFn) -> dict[str, list[bool]]:
    """Spells of one to twelve ticks in one to three zones."""
    zones = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        spells = draw(st.lists(st.integers(1, 12), min_size=1, max_size=12))
        is_up = draw(st.booleans())
        zones[name] = [is_up ^ bool(n % 2) for n, length in enumerate(spells) for _ in range(length)]
    return zones


@settings(max_examples=120, deadline=None)
@given(
    zones=weather(),
    tick_s=st.sampled_from([60.0, 195.0, 600.0]),
    restart_s=st.floats(30.0, 1500.0),
    work_h=st.floats(0.5, 6.0),
    spare=st.floats(0.0, 1.5),
    seed=st.integers(0, 2**16),
)
def test_no_deadline_is_missed_whatever_spot_does(
    zones: dict[str, list[bool]], tick_s: float, restart_s: float, work_h: float, spare: float, seed: int
) -> None:
    """Many parameters: what may happen to a run. Starts on spot take up to ten times what was measured, those on demand up to what the reserve allows."""
    generator = random.Random(seed)
    longest = {Market.SPOT: 10.0, Market.ON_DEMAND: LONGER_STARTS}
    deadline_s = work_h * HOUR * (1 + spare) + LONGER_STARTS * restart_s
    job = Job(work_h * HOUR, deadline_s, restart_s, on_demand_usd_per_hour=3.06, spot_usd_per_hour=0.97)
    ended = simulate(job, zones, tick_s, decide, lambda market: restart_s * generator.uniform(0.2, longest[market]))
    assert ended.finished_s <= deadline_s + ALMOST_S


def test_a_run_that_cannot_wait_takes_on_demand_though_spot_is_there() -> None:
    for market in (Market.NONE, Market.ON_DEMAND):
        assert decide(with_slack(reserve_s(NOW) + NOW.until_next_s - 1, market=market), seen(a=True)) == ON_DEMAND


def test_a_running_spot_machine_is_kept_until_the_reserve_is_touched() -> None:
    on_spot = {"market": Market.SPOT, "zone": "a"}
    assert decide(with_slack(reserve_s(NOW), **on_spot), seen(a=True)) == SPOT_A
    assert decide(with_slack(reserve_s(NOW) - 1, **on_spot), seen(a=True)) == ON_DEMAND


def test_a_spot_machine_that_never_starts_is_given_up_in_time() -> None:
    starting = {"market": Market.SPOT, "zone": "a", "is_starting": True}
    enough = reserve_s(NOW) + NOW.until_next_s
    assert decide(with_slack(enough, **starting), seen(a=True)) == SPOT_A
    assert decide(with_slack(enough - 1, **starting), seen(a=True)) == ON_DEMAND


def test_slack_is_spent_on_spot_where_there_is_enough() -> None:
    assert decide(NOW, seen(a=True)) == SPOT_A
    assert decide(dataclasses.replace(NOW, market=Market.ON_DEMAND), seen(a=True)) == SPOT_A


def test_a_short_want_is_waited_for_where_slack_is_plenty_and_worked_through_where_it_is_not() -> None:
    nothing = dataclasses.replace(NOW, spot=())
    plenty = dataclasses.replace(nothing, deadline_s=200 * HOUR)
    scarce = dataclasses.replace(nothing, deadline_s=NOW.work_left_s + 1.2 * HOUR)
    assert decide(plenty, seen(a=False)) == WAIT
    assert decide(scarce, seen(a=False)) == ON_DEMAND


def test_spot_dearer_than_on_demand_is_left() -> None:
    assert decide(dataclasses.replace(NOW, spot=(Offer("a", 3.5),)), seen(a=True)) == ON_DEMAND


def test_a_run_stops_while_its_budget_still_pays_the_save() -> None:
    on_spot = dataclasses.replace(NOW, market=Market.SPOT, zone="a")
    last_usd = 0.97 * (NOW.until_next_s + NOW.save_s) / HOUR
    assert decide(dataclasses.replace(on_spot, budget_left_usd=last_usd + 0.01), seen(a=True)) == SPOT_A
    assert decide(dataclasses.replace(on_spot, budget_left_usd=last_usd - 0.01), seen(a=True)) == OUT_OF_BUDGET
    late = with_slack(reserve_s(NOW), budget_left_usd=last_usd + 0.01)
    assert decide(late, seen(a=True)) == OUT_OF_BUDGET


def test_the_cheaper_zone_is_taken() -> None:
    offers = (Offer("a", 0.97), Offer("b", 0.60))
    assert decide(dataclasses.replace(NOW, spot=offers), seen(a=True, b=True)) == Choice(Market.SPOT, "b")


def test_the_zone_whose_machines_last_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "WORK_POINTS", 64)
    sightings = Sightings()
    for tick in range(40):
        sightings.see(tick * 900.0, {"a": tick % 2 == 1, "b": True})
    offers = (Offer("a", 0.97), Offer("b", 0.97))
    now = dataclasses.replace(NOW, now_s=40 * 900.0, deadline_s=NOW.deadline_s + 40 * 900.0, spot=offers)
    assert decide(now, sightings) == Choice(Market.SPOT, "b")


def test_a_run_on_demand_takes_a_young_zone_though_some_zone_was_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long availability of the zones together says nothing for staying on demand beside a machine that saves two thirds."""
    monkeypatch.setattr(policy, "WORK_POINTS", 64)
    monkeypatch.setattr(policy, "SLACK_POINTS", 40)
    sightings = Sightings()
    for tick in range(61):
        sightings.see(tick * 600.0, {"a": tick // 20 % 2 == 1, "b": tick // 20 % 2 == 0})
    now = with_slack(4 * HOUR, market=Market.ON_DEMAND, restart_s=180.0)
    assert sightings.zones["a"].age_h() == 0.0 < sightings.anywhere.age_h()
    assert decide(now, sightings) == SPOT_A


def test_hazards_are_learnt_from_the_spells_seen() -> None:
    short, long = Spells(), Spells()
    for n in range(60):
        short.see(n * 600.0, n % 2 == 0)
        long.see(n * 12 * HOUR, n % 2 == 0)
    assert short.level(True) > 1.5 > 0.8 > long.level(True)
    assert Spells().level(True) == Spells().level(False) == 1.0


def test_the_worth_of_a_machine_that_is_never_taken_is_all_that_it_saves() -> None:
    market = worth.Market(0.2, 3.06, 0.97, up_level=0.0, down_level=1.0, elsewhere=0.0)
    table = worth.solve(market, 48.0, 4.0, 48, 8)
    assert table.at(table.spot, 0, 30.0, 0.0) == pytest.approx(30 * (3.06 - 0.97))
    assert table.at(table.idle_up, 0, 30.0, 4.0) == pytest.approx(30 * (3.06 - 0.97) - 0.2 * 0.97)


def test_without_slack_or_hope_a_run_pays_a_start_on_demand_and_saves_nothing() -> None:
    market = worth.Market(0.2, 3.06, 0.97, up_level=1.0, down_level=0.0, elsewhere=0.0)
    table = worth.solve(market, 48.0, 4.0, 48, 8)
    assert table.at(table.idle_down, 0, 30.0, 0.0) == pytest.approx(-0.2 * 3.06)
    assert table.at(table.demand_down, 0, 30.0, 4.0) == 0.0


def test_more_slack_is_never_worth_less() -> None:
    table = worth.solve(worth.Market(0.2, 3.06, 0.97, 1.0, 1.0, 0.3), 48.0, 20.0, 16, 20)
    for name in ("spot", "idle_up", "idle_down", "demand_up", "demand_down"):
        worths = [table.at(getattr(table, name), 0, 40.0, slack) for slack in range(21)]
        assert all(less <= more + 1e-9 for less, more in itertools.pairwise(worths)), name
        assert all(math.isfinite(value) for value in worths)


def test_a_simulated_run_is_paid_from_the_tick_that_asks_to_the_end_of_its_work() -> None:
    """Spot for two ticks, its start in the first; taken; on demand to the end: 3 minutes, 7 and 10 of work, 3 and 3."""
    job = Job(20 * 60.0, 10 * HOUR, restart_s=180.0, on_demand_usd_per_hour=6.0, spot_usd_per_hour=2.0)

    def spot_or_on_demand(now: Situation, _: Sightings) -> Choice:
        return SPOT_A if now.spot else ON_DEMAND

    ended = simulate(job, {"a": [True, True, False]}, 600.0, spot_or_on_demand)
    assert ended.usd == pytest.approx(2.0 * 1200 / HOUR + 6.0 * (180 + 180) / HOUR)
    assert (ended.finished_s, ended.num_starts, ended.spot_s) == (1200 + 360, 2, 1200)


def test_a_policy_that_asks_for_what_is_not_there_is_stopped() -> None:
    job = Job(HOUR, 10 * HOUR, 180.0, on_demand_usd_per_hour=6.0, spot_usd_per_hour=2.0)
    with pytest.raises(ValueError, match="has none at 0 s"):
        simulate(job, {"a": [False]}, 600.0, lambda *_: SPOT_A)
