"""`dolphin down` at each phase of a run: gone means that no request, no job and no instance of it is left, then or later."""

from __future__ import annotations

import signal
from typing import Any

from tests.support.cloud_lab import GPUS, CloudLab
from tests.support.sky_lab import STEP_S, until

SHORT = {"train.max_steps": "4000", "checkpoint.every.epochs": "null", "checkpoint.every.steps": "2000"}
"""Does not end by itself, and saves nothing that it is not asked for."""


def launched(cloud: CloudLab, name: str) -> str:
    cloud.run(*cloud.job(name, **SHORT), "-d")
    return cloud.run_of(name)


def state_of(cloud: CloudLab, run: str) -> Any:
    return cloud.status(run)["state"]


def is_gone(cloud: CloudLab, run: str) -> None:
    """AssertionError where something of the run is there, or could come back."""
    assert cloud.left_of(run) == []
    assert state_of(cloud, run) in ("cancelled", "lost", "failed")


def test_down_of_a_request_that_waits_cancels_the_request(cloud: CloudLab) -> None:
    """Else the node starts minutes later, and nobody watches it."""
    process = cloud.start(*cloud.job("waits", **SHORT))

    def is_asked() -> bool:
        assert process.poll() is None, process.communicate()
        return any(cloud.runs.glob("waits-*/sky-request"))

    until(is_asked)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = cloud.run_of("waits")
    cloud.run("down", run)
    is_gone(cloud, run)


def test_down_while_no_node_can_be_had_ends_the_search(cloud: CloudLab) -> None:
    with cloud.shortage(type=GPUS):
        run = launched(cloud, "searches")
        assert state_of(cloud, run) in ("queued", "provisioning")
        cloud.run("down", run)
    is_gone(cloud, run)
    assert cloud.instances(run) == []


def test_down_during_setup_takes_the_new_node_down(cloud: CloudLab) -> None:
    run = launched(cloud, "sets-up")
    until(lambda: cloud.node(run))
    assert (cloud.status(run)["step"] or 0) == 0
    cloud.run("down", run)
    is_gone(cloud, run)


def test_down_of_a_running_job_saves_first(cloud: CloudLab) -> None:
    run = launched(cloud, "runs")
    until(lambda: (cloud.status(run)["step"] or 0) >= 3, 2 * STEP_S)
    said = cloud.run("down", run).stderr
    is_gone(cloud, run)
    assert "its progress saved first" in said
    assert cloud.status(run)["saved_step"] >= 3


def test_down_during_a_recovery_ends_it(cloud: CloudLab) -> None:
    run = launched(cloud, "recovers")
    until(lambda: (cloud.status(run)["step"] or 0) >= 3, 2 * STEP_S)
    node = cloud.node(run)
    assert node is not None
    with cloud.shortage(type=GPUS):
        cloud.lab("reclaim", node["id"], "0")
        until(lambda: state_of(cloud, run) == "recovering")
        cloud.run("down", run)
    is_gone(cloud, run)
