"""A run with an optimizer whose state is of another kind, killed and gone on with, must end with the bits of one that was not."""

from __future__ import annotations

import pytest

from tests.support import tiny_job


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "muon"])
def test_a_run_killed_in_a_save_ends_with_the_same_bits(tmp_path, optimizer) -> None:
    def job(name: str):
        return tiny_job.write_job(
            tmp_path, name, nproc=2,
            train={"zero": 3, "precision": "bf16", "max_steps": 8, "optimizer": optimizer},
            checkpoint={"every": {"steps": 3}, "max_restarts": 0},
        )  # fmt: skip

    untouched = tiny_job.train(job("untouched"))
    run = job("killed")
    tiny_job.train(run, expect=1, DOLPHIN_FAULT="mid-shard@6/1")
    assert [line["step"] for line in run.read_metrics() if "loss" in line][-1] >= 6
    tiny_job.train(run)
    [resumed] = [event for event in run.read_events() if event["event"] == "resumed"]
    assert resumed["step"] == 3
    assert tiny_job.weights_sha256(run) == tiny_job.weights_sha256(untouched)
