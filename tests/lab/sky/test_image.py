"""The image path on a cluster: SkyPilot makes a container of dolphin's own image the node, and the run ends as anywhere."""

from __future__ import annotations

import grp
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.docker import engine as docker_lab
from tests.support.require import lacking
from tests.support.sky_lab import STEP_S, Lab, digest

STEPS = {"train.max_steps": "20", "checkpoint.every.epochs": "null", "checkpoint.every.steps": "10"}


@pytest.fixture(scope="module")
def image(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The CPU image in an engine that the lab's nodes use in place of enroot."""
    reason = docker_lab.why_not(may_install=True)
    if reason is not None:
        lacking("lab", reason)
    with docker_lab.running_engine(group=grp.getgrnam("dolphinlab").gr_gid) as engine:
        context = docker_lab.image_context(tmp_path_factory.mktemp("context"))
        name = docker_lab.build_image(engine, context, tmp_path_factory.mktemp("image") / "image.log")
        lab.lab("up", LAB_PYXIS="1", DOCKER_HOST=engine.host)
        yield name
        lab.lab("up")


def test_the_image_is_the_node_and_its_trainer_makes_the_same_model(lab: Lab, image: str, tmp_path: Path) -> None:
    asked = {"resources.container": "image", "resources.image": image, **STEPS}
    done = lab.run(*lab.job("image", python=None, **asked))
    run = lab.run_of("image")
    status = lab.status(run)
    assert (status["state"], status["attempts"]) == ("succeeded", 1)
    model = Path(lab.run("fetch", run, str(tmp_path / "model")).stdout.strip())
    assert "training 1,193,184 of 1,395,936 parameters" in done.stdout
    assert digest(model) == lab.local_digest(STEPS, tmp_path)
    assert lab.slurm_jobs() == []
    left = subprocess.run(
        ["pgrep", "-f", "trainer[.]supervise"], capture_output=True, text=True, timeout=STEP_S, check=False
    )
    assert left.stdout == ""
