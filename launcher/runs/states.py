"""States of a run and reasons for its end, with total mappings between them and the exit codes. Pure.

Every member of an enum here appears in every mapping over it (tested): what is not known is LOST, never pending.
"""

from __future__ import annotations

from enum import StrEnum

from trainer.run.exits import INTERRUPTED, ExitCode


class RunState(StrEnum):
    """Where a run is, whatever the backend."""

    CREATED = "created"
    """In the ledger, being submitted at this moment."""
    QUEUED = "queued"
    """Accepted; waits for a machine."""
    PROVISIONING = "provisioning"
    """A machine is being made ready: nodes, mounts, image."""
    RUNNING = "running"
    """The trainer's process runs; the events say what it does."""
    RECOVERING = "recovering"
    """The node was taken away; the backend looks for another one."""
    STOPPING = "stopping"
    """Asked to stop; the trainer saves."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    BAD_INPUT = "bad input"
    """The trainer refused the specification or the data; starting again cannot help."""
    PREEMPTED = "preempted"
    """Stopped with everything saved, and nobody starts it again by itself: `dolphin resume`."""
    BUDGET_REACHED = "budget reached"
    """Saved, exported and ended by the job's budget: `dolphin resume --set budget=...` goes on."""
    DEADLINE_REACHED = "deadline reached"
    """The same by its deadline."""
    CANCELLED = "cancelled"
    """Stopped by `dolphin down`."""
    NO_CAPACITY = "no capacity"
    """Never got a machine."""
    LOST = "lost"
    """Gone without saying how it ended, or in a state that this version does not know."""


class EndReason(StrEnum):
    """Why a command that waited for a run, or was to start one, is over."""

    DONE = "done"
    FAILED = "failed"
    BAD_INPUT = "bad input"
    PREEMPTED = "preempted"
    LOST = "lost"
    BAD_SPECIFICATION = "bad specification"
    NO_CAPACITY = "no capacity"
    BACKEND = "backend"
    CANCELLED = "cancelled"
    DETACHED = "detached"
    """Ctrl-C: the run goes on."""


END_REASONS: dict[RunState, EndReason | None] = {
    RunState.CREATED: None,
    RunState.QUEUED: None,
    RunState.PROVISIONING: None,
    RunState.RUNNING: None,
    RunState.RECOVERING: None,
    RunState.STOPPING: None,
    RunState.SUCCEEDED: EndReason.DONE,
    RunState.FAILED: EndReason.FAILED,
    RunState.BAD_INPUT: EndReason.BAD_INPUT,
    RunState.PREEMPTED: EndReason.PREEMPTED,
    RunState.BUDGET_REACHED: EndReason.CANCELLED,
    RunState.DEADLINE_REACHED: EndReason.CANCELLED,
    RunState.CANCELLED: EndReason.CANCELLED,
    RunState.NO_CAPACITY: EndReason.NO_CAPACITY,
    RunState.LOST: EndReason.LOST,
}
"""None: the run is not over."""

EXIT_CODES: dict[EndReason, int] = {
    EndReason.DONE: 0,
    EndReason.FAILED: 1,
    EndReason.BAD_INPUT: 1,
    EndReason.PREEMPTED: 1,
    EndReason.LOST: 1,
    EndReason.BAD_SPECIFICATION: 2,
    EndReason.NO_CAPACITY: 3,
    EndReason.BACKEND: 4,
    EndReason.CANCELLED: 5,
    EndReason.DETACHED: INTERRUPTED,
}
"""Exit codes of the launcher: 0 ok, 1 job failed, 2 bad specification, 3 no capacity, 4 backend or credentials,
5 cancelled (by a person, or by the job's own budget or deadline), 130 interrupted. A job whose data is bad was started and failed: 1, not 2."""

TRAINER_STATES: dict[ExitCode, RunState] = {
    ExitCode.DONE: RunState.SUCCEEDED,
    ExitCode.FAILED: RunState.FAILED,
    ExitCode.BAD_INPUT: RunState.BAD_INPUT,
    ExitCode.PREEMPTED: RunState.PREEMPTED,
    ExitCode.BUDGET_REACHED: RunState.BUDGET_REACHED,
    ExitCode.DEADLINE_REACHED: RunState.DEADLINE_REACHED,
}

LIMIT_STATES = {RunState.BUDGET_REACHED: "budget", RunState.DEADLINE_REACHED: "deadline"}
"""States that the job's own limits made, and the key that gives more."""
STOPPED_STATES = frozenset({RunState.FAILED, RunState.PREEMPTED, RunState.LOST})
"""States that `dolphin down` explains: after it they read as CANCELLED."""


def is_over(state: RunState) -> bool:
    return END_REASONS[state] is not None


def state_of_exit_code(exit_code: int | None) -> RunState:
    """State of a trainer that is gone. `None` (nobody knows how it ended) is LOST; a code of no meaning, such as
    137 or -9, is FAILED."""
    if exit_code is None:
        return RunState.LOST
    try:
        return TRAINER_STATES[ExitCode(exit_code)]
    except ValueError:
        return RunState.FAILED


def after_down(state: RunState) -> RunState:
    """How `state` reads once the user asked for the run to be stopped."""
    if state in STOPPED_STATES:
        return RunState.CANCELLED
    return state if is_over(state) else RunState.STOPPING


def told_after_down(state: RunState, detail: str) -> tuple[RunState, str]:
    """`after_down` with its detail: where the run left no word of its end, it was the `down` that ended it, and no reboot."""
    if state is RunState.LOST:
        detail = "ended by `dolphin down` before it could say a word; `dolphin resume` goes on"
    return after_down(state), detail


def exit_code_of(state: RunState) -> int:
    """Exit code of a command that waited for the run; raises ValueError where it is not over."""
    reason = END_REASONS[state]
    if reason is None:
        raise ValueError(f"a run that is {state.value} has no exit code yet")
    return EXIT_CODES[reason]
