"""A state without a meaning is how a dead run is shown as running."""

import pytest

from launcher.runs.states import (
    END_REASONS,
    EXIT_CODES,
    TRAINER_STATES,
    EndReason,
    RunState,
    after_down,
    exit_code_of,
    is_over,
    state_of_exit_code,
)
from trainer.run.exits import ExitCode


@pytest.mark.parametrize(("mapping", "members"), [(END_REASONS, RunState), (EXIT_CODES, EndReason), (TRAINER_STATES, ExitCode)])  # fmt: skip
def test_every_member_has_a_meaning(mapping, members):
    assert set(mapping) == set(members)


def test_exit_codes_are_the_documented_ones():
    assert {reason.name: code for reason, code in EXIT_CODES.items()} == {
        "DONE": 0, "FAILED": 1, "BAD_INPUT": 1, "PREEMPTED": 1, "LOST": 1, "BAD_SPECIFICATION": 2, "NO_CAPACITY": 3,
        "BACKEND": 4, "CANCELLED": 5, "DETACHED": 130,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, RunState.SUCCEEDED), (64, RunState.BAD_INPUT), (75, RunState.PREEMPTED), (1, RunState.FAILED),
     (76, RunState.BUDGET_REACHED), (77, RunState.DEADLINE_REACHED), (137, RunState.FAILED), (-9, RunState.FAILED), (2, RunState.FAILED), (None, RunState.LOST)],
)  # fmt: skip
def test_how_a_trainer_ended(code, state):
    assert state_of_exit_code(code) is state


def test_only_a_run_that_is_over_has_an_exit_code():
    for state in RunState:
        if is_over(state):
            assert exit_code_of(state) in EXIT_CODES.values()
            assert (exit_code_of(state) == 0) == (state is RunState.SUCCEEDED)
        else:
            with pytest.raises(ValueError, match="no exit code yet"):
                exit_code_of(state)


def test_a_run_that_finished_before_it_could_be_stopped_succeeded():
    assert after_down(RunState.SUCCEEDED) is RunState.SUCCEEDED
    assert after_down(RunState.BAD_INPUT) is RunState.BAD_INPUT
    assert after_down(RunState.PREEMPTED) is RunState.CANCELLED
    assert after_down(RunState.LOST) is RunState.CANCELLED
    assert after_down(RunState.RUNNING) is RunState.STOPPING
