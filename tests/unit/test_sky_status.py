"""SkyPilot's words in dolphin's: total, the unknown is LOST, and each node has its price."""

from __future__ import annotations

import pytest

from launcher.backends.sky.deadline.names import SPENT
from launcher.backends.sky.status import (
    CLUSTER_JOB_STATES,
    MANAGED_JOB_STATES,
    cluster_job_state,
    managed_state,
    node_attempts,
    price_of,
    settled,
)
from launcher.runs.states import RunState, is_over
from tests.support.require import needs_skypilot


def test_a_state_of_a_newer_skypilot_is_lost_and_never_pending() -> None:
    assert managed_state("HIBERNATING") is RunState.LOST
    assert cluster_job_state("") is RunState.LOST


@needs_skypilot
def test_every_state_of_the_installed_skypilot_is_mapped() -> None:
    from sky.jobs.state import ManagedJobStatus
    from sky.skylet.job_lib import JobStatus

    assert {member.value for member in ManagedJobStatus} == set(MANAGED_JOB_STATES)
    assert {member.value for member in JobStatus} == set(CLUSTER_JOB_STATES)
    for status in ManagedJobStatus:
        assert is_over(MANAGED_JOB_STATES[status.value]) == status.is_terminal(), status


def test_a_success_that_the_trainer_did_not_confirm_is_not_believed() -> None:
    assert settled(RunState.SUCCEEDED, {}, None)[0] is RunState.LOST
    assert settled(RunState.SUCCEEDED, {"exit_code": 0}, None)[0] is RunState.SUCCEEDED
    assert settled(RunState.FAILED, {"exit_code": 0}, "node died\nlong story") == (RunState.FAILED, "node died", 0)


def test_a_bad_dataset_is_bad_input_though_skypilot_says_failed() -> None:
    state, detail, code = settled(RunState.FAILED, {"exit_code": 64, "reason": "data: no row can be used"}, "Failure")
    assert (state, detail, code) == (RunState.BAD_INPUT, "data: no row can be used", 64)


def test_a_run_that_was_reclaimed_pays_for_both_nodes_and_not_for_the_time_between() -> None:
    nodes = [{"time": 100.0, "setup_at": 90.0, "node": "a"}, {"time": 2000.0, "setup_at": 1990.0, "node": "b"}]
    attempts = node_attempts(
        nodes, [120.0, 450.0, 2100.0], state=RunState.RUNNING, now=2350.0, ended_at=None, price_usd_per_hour=10.0
    )
    assert [(a.started_at, a.ended_at) for a in attempts] == [(90.0, 450.0), (1990.0, None)]
    assert price_of(attempts, 2350.0) == pytest.approx((360 + 360) / 3600 * 10)
    over = node_attempts(nodes, [450.0], state=RunState.SUCCEEDED, now=9999.0, ended_at=2350.0, price_usd_per_hour=10.0)
    assert price_of(over, 9999.0) == pytest.approx(2.0)


def test_an_unknown_price_is_said_to_be_unknown() -> None:
    nodes = [{"time": 100.0}]
    attempts = node_attempts(nodes, [], state=RunState.RUNNING, now=200.0, ended_at=None, price_usd_per_hour=None)
    assert price_of(attempts, 200.0) is None


def test_a_job_that_the_strategy_ended_for_want_of_money_did_not_lack_a_machine() -> None:
    assert RunState.BUDGET_REACHED == SPENT
    reason = "[sky.exceptions.ManagedJobReachedMaxRetriesError] budget reached: $19.90 of $20.00; `dolphin resume --set budget=...` goes on"
    state, detail, _ = settled(RunState.NO_CAPACITY, {"exit_code": 75}, reason)
    assert (state, detail.partition(";")[0]) == (RunState.BUDGET_REACHED, "budget reached: $19.90 of $20.00")
    assert settled(RunState.NO_CAPACITY, {}, "Resources unavailable")[0] is RunState.NO_CAPACITY
