"""SkyPilot's states in dolphin's words: total mappings by name, and the price of each node that worked on a run. Pure.

Every member of SkyPilot's enums appears here (tested against the installed SkyPilot); a name of a newer SkyPilot is LOST,
never pending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.backends.base import NodeAttempt
from launcher.runs.states import RunState, is_over, state_of_exit_code

MANAGED_JOB_STATES: dict[str, RunState] = {
    "PENDING": RunState.QUEUED,
    "SUBMITTED": RunState.QUEUED,
    "STARTING": RunState.PROVISIONING,
    "RUNNING": RunState.RUNNING,
    "WINDING_DOWN": RunState.RUNNING,
    "RECOVERING": RunState.RECOVERING,
    "CANCELLING": RunState.STOPPING,
    "SUCCEEDED": RunState.SUCCEEDED,
    "CANCELLED": RunState.CANCELLED,
    "FAILED": RunState.FAILED,
    "FAILED_SETUP": RunState.FAILED,
    "FAILED_PRECHECKS": RunState.FAILED,
    "FAILED_NO_RESOURCE": RunState.NO_CAPACITY,
    "FAILED_CONTROLLER": RunState.LOST,
}
"""sky.jobs.ManagedJobStatus. FAILED_CONTROLLER: SkyPilot's own controller died, and its word about the job with it."""

CLUSTER_JOB_STATES: dict[str, RunState] = {
    "INIT": RunState.PROVISIONING,
    "PENDING": RunState.QUEUED,
    "SETTING_UP": RunState.PROVISIONING,
    "RUNNING": RunState.RUNNING,
    "FAILED_DRIVER": RunState.FAILED,
    "SUCCEEDED": RunState.SUCCEEDED,
    "FAILED": RunState.FAILED,
    "FAILED_SETUP": RunState.FAILED,
    "CANCELLED": RunState.CANCELLED,
}
"""sky.JobStatus: a job on a cluster of one's own (`--cluster`)."""

_DETAILS = {
    "PENDING": "waits for SkyPilot's jobs controller",
    "STARTING": "looking for a node, and making it ready",
    "FAILED_SETUP": "the node could not be made ready; `sky jobs logs` has its last words",
    "FAILED_CONTROLLER": "SkyPilot's jobs controller died; `sky jobs logs --controller` says why; `dolphin resume` goes on",
}


def managed_state(name: str) -> RunState:
    return MANAGED_JOB_STATES.get(name, RunState.LOST)


def cluster_job_state(name: str) -> RunState:
    return CLUSTER_JOB_STATES.get(name, RunState.LOST)


def settled(state: RunState, outcome: Mapping[str, Any], reason: str | None) -> tuple[RunState, str, int | None]:
    """SkyPilot's state with what the trainer said at its end: state, detail and exit code.

    SkyPilot knows FAILED alone; whether the data was bad, the trainer says. A job that dolphin's strategy ended for want of money is
    one that got no machine to SkyPilot. A trainer that says 0 while SkyPilot says
    FAILED is not believed."""
    code = outcome.get("exit_code")
    if state is RunState.NO_CAPACITY and (at := (reason or "").find(RunState.BUDGET_REACHED)) >= 0:
        return RunState.BUDGET_REACHED, _first_line((reason or "")[at:]), None
    if state is RunState.SUCCEEDED and code is None:
        return (
            RunState.LOST,
            "SkyPilot says it succeeded, but the trainer left no outcome; `sky jobs logs` may say why",
            None,
        )
    if state not in (RunState.FAILED, RunState.SUCCEEDED) or not isinstance(code, int):
        return state, _first_line(reason), None
    said = state_of_exit_code(code)
    if state is RunState.SUCCEEDED or said is RunState.SUCCEEDED:
        return state, str(outcome.get("reason") or "") if said is state else _first_line(reason), code
    return said, str(outcome.get("reason") or ""), code


def detail_of(name: str, state: RunState, *, step: int | None, is_known: bool) -> str:
    """One line for a state that the trainer says nothing about."""
    if not is_known:
        return f"SkyPilot says {name}, which this version of dolphin does not know; `sky jobs queue` shows it"
    if state is RunState.RECOVERING:
        return f"node reclaimed at step {step}; looking for another" if step else "node reclaimed; looking for another"
    return _DETAILS.get(name, "")


def node_attempts(
    nodes: Sequence[Mapping[str, Any]],
    heard: Sequence[float],
    *,
    state: RunState,
    now: float,
    ended_at: float | None,
    price_usd_per_hour: float | None,
) -> tuple[NodeAttempt, ...]:
    """The nodes that worked on the run, from nodes.jsonl. A node was paid for from its first command (provisioning
    before that is not seen from there) until the last that was `heard` of it before the next one came, or `ended_at`. Its price
    is what it wrote down at its start; `price_usd_per_hour` is for one that could not know."""
    attempts = []
    for index, node in enumerate(nodes):
        started = float(node.get("setup_at") or node["time"])
        if index + 1 < len(nodes):
            following = float(nodes[index + 1].get("setup_at") or nodes[index + 1]["time"])
            ended: float | None = max((at for at in heard if started <= at < following), default=started)
        elif is_over(state):
            ended = ended_at or now
        else:
            ended = None
        own = node.get("price_usd_per_hour")
        price = float(own) if isinstance(own, int | float) else price_usd_per_hour
        attempts.append(NodeAttempt(started, ended, node.get("node"), node.get("infra"), price))
    return tuple(attempts)


def price_of(attempts: Sequence[NodeAttempt], now: float) -> float | None:
    """US dollars so far; None where a price is not known."""
    total = 0.0
    for attempt in attempts:
        if attempt.price_usd_per_hour is None:
            return None
        total += max(0.0, (attempt.ended_at or now) - attempt.started_at) / 3600 * attempt.price_usd_per_hour
    return total


def _first_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[0] if lines else ""
