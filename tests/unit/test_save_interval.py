"""Saves too seldom repeat hours of work, saves too often are the work."""

import math

import pytest

from trainer.checkpoint.schedule import SaveSchedule
from trainer.run import save_interval
from trainer.run.run_folder import EventKind, RunDir
from trainer.run.settings.checkpoint import CheckpointSpec

HOUR, DAY = 3600.0, 86400.0


def expected_time(work_s, interval_s, cost_s, mean_time_s):
    """Daly's complete model (2006, equation 20), restart time 0: wall-clock time to do `work_s`."""
    return mean_time_s * math.expm1((interval_s + cost_s) / mean_time_s) * work_s / interval_s


@pytest.mark.parametrize("cost_s", [0.3, 5.0, 60.0, 900.0])
@pytest.mark.parametrize("mean_time_s", [HOUR, 6 * HOUR, 3 * DAY])
def test_no_other_interval_is_noticeably_better(cost_s, mean_time_s):
    chosen = save_interval.optimal_interval_s(cost_s, mean_time_s)
    others = (cost_s / 10 * 1.02**i for i in range(1000))
    best = min(expected_time(1.0, other, cost_s, mean_time_s) for other in others if other < 10 * mean_time_s)
    assert expected_time(1.0, chosen, cost_s, mean_time_s) <= best * 1.001


def test_a_save_that_costs_more_than_it_can_win_is_made_once_per_interruption():
    assert save_interval.optimal_interval_s(cost_s=3 * HOUR, mean_time_between_s=HOUR) == HOUR


def test_what_is_observed_takes_the_place_of_what_was_stated():
    assert save_interval.preemptions_per_day(4.0, 0, 0.0) == pytest.approx(4.0)
    assert save_interval.preemptions_per_day(4.0, 200, 10 * DAY) == pytest.approx(20.0, rel=0.05)
    assert save_interval.preemptions_per_day(4.0, 0, 10 * DAY) < 0.1
    assert save_interval.preemptions_per_day(4.0, 1, 60.0) < 10  # one early interruption is no storm


def test_a_save_is_through_before_the_next_begins():
    assert save_interval.save_interval_s(None, None, 4.0) == save_interval.FIRST_S
    assert save_interval.save_interval_s(0.001, 900.0, 4.0) == 1800.0
    assert save_interval.save_interval_s(0.0001, 0.1, 1000.0) == save_interval.SHORTEST_S
    assert save_interval.save_interval_s(2.0, 10.0, 4.0) == pytest.approx(math.sqrt(2 * 2 * DAY / 4), rel=0.02)


def schedule(tmp_path, every, attempt=1, total_steps=100):
    run = RunDir(tmp_path)
    return SaveSchedule(CheckpointSpec.model_validate({"every": every}), run, attempt, total_steps, steps_per_epoch=10)


def test_steps_and_epochs_are_due_at_the_same_steps_after_every_resume(tmp_path):
    steps = schedule(tmp_path, {"steps": 30})
    assert [s for s in range(101) if steps.is_due_by_step(s)] == [30, 60, 90]
    steps.saved(60)
    assert not steps.is_due_by_step(60)
    epochs = schedule(tmp_path, {"epochs": 0.25})
    assert [s for s in range(21) if epochs.is_due_by_step(s)] == [3, 5, 8, 10, 13, 15, 18, 20]
    both = schedule(tmp_path, {"steps": 40, "epochs": 3})
    assert [s for s in range(101) if both.is_due_by_step(s)] == [30, 40, 60, 80, 90]


def test_the_last_step_is_left_to_the_loop_which_waits_for_it(tmp_path):
    assert not schedule(tmp_path, {"steps": 10}).is_due_by_step(100)


def test_minutes_and_auto_go_by_the_clock(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("trainer.checkpoint.schedule.time.monotonic", lambda: now[0])
    minutes, auto = schedule(tmp_path, {"minutes": 5}), schedule(tmp_path, "auto")
    now[0] += 299
    assert not minutes.is_due_by_clock(7, None, None)
    assert auto.is_due_by_clock(7, None, None)
    assert not auto.is_due_by_clock(7, blocked_s=4.0, whole_s=10.0)
    now[0] += 1
    assert minutes.is_due_by_clock(7, None, None)
    minutes.saved(7)
    assert not minutes.is_due_by_clock(8, None, None)
    assert not schedule(tmp_path, {"steps": 5}).is_due_by_clock(7, None, None)


def test_many_interruptions_shorten_the_interval(tmp_path, monkeypatch):
    RunDir(tmp_path).emit(EventKind.ATTEMPT_STARTED, attempt=1)
    now = [1000.0]
    monkeypatch.setattr("trainer.checkpoint.schedule.time.monotonic", lambda: now[0])
    calm, stormy = schedule(tmp_path, "auto"), schedule(tmp_path, "auto", attempt=40)
    now[0] += 120
    assert not calm.is_due_by_clock(5, 2.0, 10.0)
    assert stormy.is_due_by_clock(5, 2.0, 10.0)


@pytest.mark.parametrize(
    "every", ["auto", {"steps": 7}, {"minutes": 5}, {"epochs": 0.25}, {"epochs": 3}, {"steps": 40, "minutes": 2}],
)  # fmt: skip
def test_the_plan_expects_the_saves_that_the_trainer_makes(tmp_path, monkeypatch, every):
    """Hours and prices rest on them."""
    now = [0.0]
    monkeypatch.setattr("trainer.checkpoint.schedule.time.monotonic", lambda: now[0])
    step_s, num_steps, blocked_s, whole_s = 6.0, 3000, 4.0, 10.0
    trains = schedule(tmp_path, every, total_steps=num_steps)
    num_saves = 0
    for step in range(1, num_steps + 1):
        now[0] += step_s
        if trains.is_due_by_step(step) or trains.is_due_by_clock(step, blocked_s, whole_s):
            trains.saved(step)
            num_saves += 1
    settings = CheckpointSpec.model_validate({"every": every})
    planned_s = save_interval.expected_interval_s(
        settings, step_s=step_s, steps_per_epoch=10, blocked_s=blocked_s, whole_s=whole_s,
        rate_per_day=settings.preemptions_per_day,
    )  # fmt: skip
    assert num_steps * step_s / planned_s == pytest.approx(num_saves, rel=0.12)


def test_an_interval_that_cannot_be_told_in_seconds_is_planned_as_auto():
    known = {"blocked_s": 4.0, "whole_s": 10.0, "rate_per_day": 4.0}
    auto = save_interval.save_interval_s(*known.values())
    for every in ({"steps": 7}, {"epochs": 1}):
        settings = CheckpointSpec.model_validate({"every": every})
        assert save_interval.expected_interval_s(settings, step_s=None, steps_per_epoch=10, **known) == auto
