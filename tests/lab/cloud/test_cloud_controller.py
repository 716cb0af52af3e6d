"""A jobs controller that cannot be reached, or is stopped, says nothing about its jobs; nothing may be made of its silence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cloud_lab import CloudLab
from tests.support.sky_lab import STEP_S, until

STEPS = {"train.max_steps": "4000", "checkpoint.every.epochs": "null", "checkpoint.every.steps": "50"}


@pytest.fixture(scope="module")
def run(cloud_lab: CloudLab) -> Iterator[str]:
    """In mid-training, and left alone."""
    cloud_lab.run(*cloud_lab.job("alone", **STEPS), "-d")
    run = cloud_lab.run_of("alone")
    until(lambda: (cloud_lab.status(run)["step"] or 0) >= 3, 2 * STEP_S)
    yield run
    cloud_lab.run("down", run, expect=None)


def test_a_run_whose_controller_cannot_be_reached_gets_no_twin(cloud: CloudLab, run: str) -> None:
    """Two nodes would write into one bucket."""
    with cloud.unreachable(cloud.controller()):
        resumed = cloud.run("resume", run, "-d", expect=None)
        status = cloud.run("status", run, expect=None)
        down = cloud.run("down", run, expect=None)
    assert [one["state"] for one in cloud.instances(run)] == ["running"], "a second instance was started"
    assert len(cloud.jobs(run)) == 1
    assert resumed.returncode == 4, resumed.stderr
    assert "lost" not in status.stdout
    assert down.returncode == 4, "down says that the run is gone, and nobody could know"
    assert cloud.status(run)["state"] == "running"


def test_a_stopped_controller_is_not_the_end_of_its_runs(cloud: CloudLab, run: str) -> None:
    """Its instance is stopped by hand while a job runs: the node trains on, and costs money."""
    cloud.lab("stop-controller")
    status = cloud.run("status", run, expect=None)
    assert "lost" not in status.stdout
    down = cloud.run("down", run, expect=None)
    assert down.returncode == 4 or cloud.node(run) is None, "the node runs on, and down says that it is gone"
