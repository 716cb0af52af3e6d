"""Several nodes on a cloud: their ranks find each other by the nodes' private addresses, and the model is that of one node."""

from __future__ import annotations

from pathlib import Path

from tests.support.cloud_lab import CloudLab
from tests.support.sky_lab import digest

STEPS = {"train.max_steps": "8", "checkpoint.every.epochs": "null", "checkpoint.every.steps": "4"}


def test_two_nodes_of_one_rank_make_the_model_of_two_ranks(cloud: CloudLab, tmp_path: Path) -> None:
    words = cloud.job("two", **STEPS, **{"resources.num_nodes": "2"})
    words[words.index("--nproc") + 1] = "1"
    cloud.run(*words)
    run = cloud.run_of("two")
    assert len(cloud.instances(run)) == 2
    model = Path(cloud.run("fetch", run, str(tmp_path / "model")).stdout.strip())
    assert digest(model) == cloud.local_digest(STEPS, tmp_path)
