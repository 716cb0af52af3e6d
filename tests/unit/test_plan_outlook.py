"""A plan under a deadline and a budget. The disasters: it promises what no luck would keep; spot is taken where its p90 is too late
and nobody will change it; a run on a rented box has a budget that nothing counts against."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.backends.base import Offer
from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec
from launcher.models.architecture import TrainedModel, find_architecture
from launcher.plan.data_facts import stated
from launcher.plan.launch_plan import LaunchPlan, Outlook, Subject
from launcher.plan.limits import (
    is_still_wanted,
    limits_of,
    refuse_what_cannot_be_met,
    refuse_what_is_spent,
    refuse_what_nothing_counts,
    with_chosen_market,
)
from launcher.plan.make import make_plan
from launcher.plan.outlook import Weather, outlook_of
from launcher.plan.view import summarise
from launcher.runs.errors import BadUsage
from trainer.run.limits import Limits
from trainer.run.run_folder import RunDir, append_line

EXAMPLE = Path(__file__).parents[2] / "examples" / "dolphin-2.9.4-llama3.1-8b.yaml"
SPOT = Offer("sky", "aws/eu-south-2/a", "L40S", 8, True, 10.0, 45_776, "g6e.48xlarge")
DEMAND = Offer("sky", "aws/us-east-1", "L40S", 8, False, 30.0, 45_776, "g6e.48xlarge")
HOME = Offer("local", "local", "L40S", 8, False, 2.0, 45_776)
WORK_H = 106.6
"""Of the reference job on these machines, as `make_plan` counts it."""


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("launcher.plan.outlook.RUNS", 5)


def job_of(**changes: Any) -> JobSpec:
    return load_job(EXAMPLE).model_copy(update=changes)


def plan_of(offers: list[Offer], deadline_h: float | None) -> LaunchPlan:
    job = load_job(EXAMPLE)
    assert isinstance(job.train.unfrozen, tuple)
    model = TrainedModel.by_patterns(find_architecture(job.model.base), job.train.unfrozen)
    return make_plan(Subject(job, model, stated(291_840)), offers, deadline_h=deadline_h)


def under(
    offers: list[Offer], deadline_h: float | None = None, budget_usd: float | None = None, **more: Any
) -> tuple[LaunchPlan, Outlook]:
    plan = plan_of(offers, deadline_h)
    words: dict[str, Any] = {"spot": "prefer", "weather": {}, "not_enforced": None} | more
    outlook = outlook_of(plan, budget_usd=budget_usd, **words)
    assert outlook is not None
    return dataclasses.replace(plan, outlook=outlook), outlook


def test_without_a_deadline_and_a_budget_nothing_is_looked_at() -> None:
    plan = plan_of([SPOT], None)
    assert outlook_of(plan, budget_usd=None, spot="prefer", weather={}, not_enforced=None) is None


def test_on_a_machine_of_ones_own_the_price_and_the_hours_say_it_all() -> None:
    _, outlook = under([HOME], 120.0, 250.0)
    assert outlook.hours[0] == outlook.hours[1] == pytest.approx(WORK_H, abs=0.5)
    assert outlook.usd[0] == pytest.approx(2 * outlook.hours[0])
    assert (outlook.in_time, outlook.in_budget, outlook.why_not) == (1.0, 1.0, "")


def test_the_deadlines_policy_is_in_time_for_less_than_on_demand() -> None:
    _, outlook = under([SPOT, DEMAND], 130.0, 3000.0)
    assert outlook.how == "deadline"
    assert outlook.in_time == 1.0
    assert outlook.hours[1] <= 130.0
    assert outlook.usd[1] < 0.9 * 30.0 * WORK_H


def test_zones_that_were_seen_to_be_taken_often_make_it_dearer() -> None:
    calm = under([SPOT, DEMAND], 120.0, weather={SPOT.infra: Weather(0.01, 300.0)})[1]
    rough = under([SPOT, DEMAND], 120.0, weather={SPOT.infra: Weather(1.5, 900.0)})[1]
    assert calm.usd[0] < rough.usd[0]
    assert calm.in_time == rough.in_time == 1.0


def test_where_nobody_changes_machines_spot_is_chosen_only_if_its_p90_is_in_time() -> None:
    why = "SkyPilot lacks dolphin's plugin"
    wild = {SPOT.infra: Weather(2.0, 1200.0)}
    late_plan, late = under([SPOT], 110.0, not_enforced=why, weather=wild)
    assert (late.how, late.in_time) == ("spot", 0.0), "there is nothing else"
    dear = dataclasses.replace(DEMAND, price_usd_per_hour=9.0)
    plan, chosen = under([SPOT, dear], 107.0, not_enforced=why, weather=wild)
    assert (chosen.how, chosen.not_enforced) == ("on demand", why)
    assert [is_still_wanted(offer, plan) for offer in (SPOT, dear)] == [False, True]
    assert with_chosen_market(job_of(), plan).resources.spot == "never"
    assert with_chosen_market(job_of(), late_plan).resources.spot == job_of().resources.spot
    assert limits_of(job_of(), plan).price_usd_per_hour == 9.0
    easy_plan, easy = under([SPOT, DEMAND], 400.0, not_enforced=why, weather={SPOT.infra: Weather(0.02, 300.0)})
    assert (easy.how, easy.not_enforced) == ("spot", why)
    assert is_still_wanted(SPOT, easy_plan)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ((72.0, None), "deadline: cannot be met: the work alone takes 106"),
        ((None, 100.0), "budget: cannot be met: the work alone costs"),
    ],
)
def test_what_the_best_of_luck_would_not_keep_is_not_started(
    limits: tuple[float | None, float | None], why: str
) -> None:
    plan, outlook = under([SPOT, DEMAND], *limits)
    with pytest.raises(BadUsage, match=why):
        refuse_what_cannot_be_met(plan)
    shown = io.StringIO()
    summarise(plan, Console(file=shown, width=160))
    assert "cannot be met" in shown.getvalue()
    assert 0.0 in (outlook.in_time, outlook.in_budget)


def test_a_budget_counts_something() -> None:
    free = dataclasses.replace(HOME, price_usd_per_hour=0.0)
    with pytest.raises(BadUsage, match=r"state resources\.price_per_hour"):
        refuse_what_nothing_counts(job_of(budget=10.0), [free])
    refuse_what_nothing_counts(job_of(budget=10.0), [HOME])
    refuse_what_nothing_counts(job_of(), [free])


def test_a_resume_without_a_dollar_left_says_what_gives_more(tmp_path: Path) -> None:
    run, limits = RunDir(tmp_path), Limits(price_usd_per_hour=5.0)
    append_line(run.events, {"time": 0.0, "event": "attempt_started", "began": 0.0})
    append_line(run.events, {"time": 7200.0, "event": "finished"})
    refuse_what_is_spent(job_of(budget=11.0), run, limits)
    with pytest.raises(BadUsage, match=r"\$10\.00 of \$10\.00 is spent, .* `--set budget=\.\.\.` gives more"):
        refuse_what_is_spent(job_of(budget=10.0), run, limits)
    with pytest.raises(BadUsage, match=r"the rest pays for a save and the export alone"):
        refuse_what_is_spent(job_of(budget=11.0), run, dataclasses.replace(limits, export_s=600.0))


def test_the_screen_says_chances_and_what_is_not_enforced() -> None:
    plan, _ = under([SPOT, DEMAND], 400.0, 2000.0, not_enforced="no plugin: `dolphin doctor --fix`")
    shown = io.StringIO()
    summarise(plan, Console(file=shown, width=200))
    text = shown.getvalue()
    assert "deadline in 400.0 hours, budget $2,000.00: spot" in text
    assert "in time" in text
    assert "the deadline is not enforced, spot is chosen once: no plugin" in text


def test_the_nodes_limits_are_the_plans() -> None:
    plan, outlook = under([SPOT, DEMAND], 130.0, 3000.0)
    limits = limits_of(job_of(deadline="2026-12-01T18:00Z", budget=3000.0, notify=("${HOOK}",)), plan)
    assert (limits.deadline_at, limits.budget_usd, limits.notify) == (1_796_148_000.0, 3000.0, ("${HOOK}",))
    assert (limits.planned_hours, limits.planned_usd) == (outlook.hours[0], outlook.usd[0])
    assert limits.price_usd_per_hour == 10.0
    assert limits.export_s > 30
