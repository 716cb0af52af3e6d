"""The facts of train.json: a batch that never depends on where the job runs, and nothing left to guess on the node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.config.problems import SpecErrors
from launcher.jobfile.settle import Placement, settle
from launcher.jobfile.spec import JobSpec
from trainer.run.contradictions import problems
from trainer.run.spec import NodeJob, TrainSpec


def job(train: dict[str, Any] | None = None, **groups: Any) -> JobSpec:
    base: dict[str, Any] = {"name": "tide", "model": {"base": "m"}, "data": {"sources": [{"path": "/rows"}]}}
    return JobSpec.model_validate({**base, **({"train": train} if train else {}), **groups})


def settled(spec: JobSpec, nproc: int = 2, device: Any = "cpu", zero: int = 3) -> NodeJob:
    return settle(spec, Placement("/run", "/cache", nproc, device), run_id="r1", zero=zero)


def test_accumulation_counts_the_gpus_of_the_job_and_not_those_it_happens_to_run_on() -> None:
    spec = job({"micro_batch": 2, "accumulation": 16}, resources={"accelerators": "L40S:8"})
    assert [settled(spec, nproc).global_batch for nproc in (1, 2, 8)] == [256, 256, 256]


def test_the_ranks_of_all_nodes_share_the_batch() -> None:
    resources = {"accelerators": "L40S:8", "num_nodes": 2}
    node = settled(job({"micro_batch": 2, "accumulation": 16}, resources=resources), nproc=8)
    assert (node.nproc, node.num_nodes, node.world_size, node.global_batch) == (8, 2, 16, 512)
    with pytest.raises(SpecErrors, match=r"24 does not divide into micro batches of 1 on 16 ranks"):
        settled(job({"global_batch": 24}, resources=resources), nproc=8)


def test_a_job_that_states_no_batch_takes_one_micro_batch_per_rank() -> None:
    assert settled(job({"micro_batch": 3}), nproc=2).global_batch == 6


def test_a_batch_that_does_not_divide_on_these_ranks_is_found_before_the_start() -> None:
    with pytest.raises(SpecErrors, match=r"--nproc 3 train.global_batch: 8 does not divide .* take 6 or 9"):
        settled(job({"global_batch": 8}), nproc=3)


@pytest.mark.parametrize(
    ("stated", "nproc", "device", "planned", "stage"),
    [("auto", 1, "cpu", 0, 0), ("auto", 2, "cpu", 3, 3), ("auto", 1, "cuda", 2, 2), (1, 1, "cpu", 3, 1), (3, 8, "cuda", 2, 3)],
)  # fmt: skip
def test_the_stage_is_settled_once(stated: Any, nproc: int, device: str, planned: int, stage: int) -> None:
    spec = job({"zero": stated, "global_batch": 8})
    assert settled(spec, nproc, device, planned).spec.train.zero == stage


def test_the_planned_seconds_of_a_step_reach_the_watch_over_it() -> None:
    place = Placement("/run", "/cache", 2, "cpu")
    assert settled(job()).step_seconds is None
    assert settle(job(), place, run_id="r1", zero=3, step_seconds=1172.0).step_seconds == 1172.0


def test_train_json_holds_the_trainers_part_only_and_reads_back_as_it_was() -> None:
    spec = job({"global_batch": 8}, env={"A": "b"}, secrets=["HF_TOKEN"], resources={"accelerators": "L40S:8"})
    node = settled(spec)
    text = node.model_dump_json()
    assert "HF_TOKEN" not in text
    assert "accelerators" not in text
    assert type(node.spec) is TrainSpec
    assert NodeJob.model_validate_json(text) == node


def test_train_json_read_back_contradicts_itself_only_where_the_job_did(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    sound = settled(job({"max_steps": 3, "global_batch": 8}, data={"sources": [{"path": "/r"}], "validation_count": 5}))
    assert sound.spec.train.epochs == 1.0, "which the file states"
    path.write_text(sound.model_dump_json())
    assert NodeJob.read(path) == sound
    assert problems(NodeJob.read(path).spec) == []
    unsound = settled(job({"max_steps": 3, "epochs": 2.0}, data={"sources": [{"path": "/r"}], "validation_fraction": 0.5, "validation_count": 5}))  # fmt: skip
    path.write_text(unsound.model_dump_json())
    assert [problem.where[-1] for problem in problems(NodeJob.read(path).spec)] == ["max_steps", "validation_count"]


def test_a_relative_folder_is_refused_because_the_node_has_another_working_directory() -> None:
    with pytest.raises(ValueError, match="run_dir must be absolute"):
        settle(job(), Placement("run", "/c", 1, "cpu"), run_id="r", zero=0)
