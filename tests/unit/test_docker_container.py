"""What a container is made of: a dataset it may write to, a link that points nowhere inside it, an image hidden by a mount."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.backends.base import Submission
from launcher.backends.docker import container
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BackendError, BadUsage
from launcher.runs.ledger import RunRecord
from trainer.run.spec import NodeJob

AT_HOME = {"model": {"base": "/nowhere/base"}, "data": {"sources": [{"path": "/nowhere/data.jsonl"}]}}


def job_of(**groups) -> JobSpec:
    given = {"name": "t", "model": {"base": "owner/base"}, "data": {"sources": [{"path": "hf://owner/data"}]}}
    return JobSpec.model_validate(given | groups)


def node_job(job: JobSpec, folder: Path) -> NodeJob:
    return NodeJob(
        run_id="t-1", run_dir=str(folder / "run"), cache_dir=str(folder / "cache"), nproc=2, device="cpu", spec=job.train_spec()
    )  # fmt: skip


def test_inputs_are_read_only_and_only_the_runs_own_folders_are_written(tmp_path):
    base, data = tmp_path / "base", tmp_path / "in" / "data.jsonl"
    base.mkdir()
    data.parent.mkdir()
    data.write_text("{}")
    job = job_of(
        model={"base": str(base)},
        data={"sources": [{"path": str(data)}]},
        checkpoint={"store": str(tmp_path / "store")},
    )
    mounts = container.mounts_of(job, node_job(job, tmp_path))
    assert mounts.read_only == ((str(base), str(base)), (str(data), str(data)))
    assert mounts.read_write == (str(tmp_path / "cache"), str(tmp_path / "run"), str(tmp_path / "store"))


def test_a_hubs_snapshot_of_links_brings_its_own_blobs_and_no_other(tmp_path):
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "123").write_text("weights")
    (blobs / "456").write_text("another revision's")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    job = job_of(model={"base": str(snapshot)})
    assert container.mounts_of(job, node_job(job, tmp_path)).read_only == (
        (str(snapshot / "model.safetensors"), str(blobs / "123")),
    )


def test_a_glob_mounts_what_it_matches_and_not_the_home_folder_around_it(tmp_path):
    data = tmp_path / "a" / "part-1.jsonl"
    data.parent.mkdir()
    for path in (data, tmp_path / "a" / "notes.txt", tmp_path / ".env"):
        path.write_text("{}")
    job = job_of(data={"sources": [{"path": f"{tmp_path}/*/part-*.jsonl"}]})
    assert container.mounts_of(job, node_job(job, tmp_path)).read_only == ((str(data), str(data)),)


def test_a_folder_with_a_key_in_it_is_mounted_without_the_key(tmp_path):
    project = tmp_path / "project"
    (project / ".ssh").mkdir(parents=True)
    (project / ".ssh" / "id_ed25519").write_text("PRIVATE")
    (project / "a.jsonl").write_text("{}")
    job = job_of(data={"sources": [{"path": str(project)}]})
    data = str(project / "a.jsonl")
    assert container.mounts_of(job, node_job(job, tmp_path)).read_only == ((data, data),)


@pytest.mark.parametrize("folder", ["/usr/share", "/"])
def test_what_would_hide_the_images_own_files_is_refused_before_it_is_searched_for_links(tmp_path, folder):
    job = job_of(model={"base": folder})
    with pytest.raises(BackendError, match="move it elsewhere"):
        container.mounts_of(job, node_job(job, tmp_path))


@pytest.mark.parametrize(
    ("groups", "needed"),
    [
        ({}, False),
        ({"model": {"base": "meta-llama/Meta-Llama-3.1-8B"}}, True),
        ({"model": {"base": "/b", "tokenizer": "owner/name"}}, True),
        ({"data": {"sources": [{"path": "/d.jsonl"}, {"path": "hf://owner/name"}]}}, True),
        ({"checkpoint": {"store": "s3://bucket/prefix"}}, True),
        ({"checkpoint": {"store": "/disk/store"}}, False),
        ({"track": {"wandb": {"project": "p", "mode": "offline"}}}, False),
        ({"track": {"wandb": {"project": "p"}}}, True),
        ({"track": {"mlflow": {"tracking_uri": "file:///runs"}}}, False),
        ({"track": {"mlflow": {"tracking_uri": "http://tracker"}}}, True),
        ({"notify": ["${HOOK}"]}, True),
    ],
)
def test_a_run_has_a_network_only_where_it_reaches_for_one(groups, needed):
    assert container.needs_network(job_of(**AT_HOME | groups)) is needed


def test_no_secret_is_in_the_containers_environment(tmp_path):
    train = node_job(job_of(), tmp_path)
    environment = container.environment_of({"MINE": "1"}, train, run_marker="M", has_secrets=True, has_network=False)
    assert environment["DOLPHIN_SECRETS_FILE"].startswith(train.run_dir)
    assert environment["M"] == "t-1"
    assert environment["MINE"] == "1"
    assert "DOLPHIN_SECRETS_FILE" not in container.environment_of(
        {}, train, run_marker="M", has_secrets=False, has_network=False
    )
    json.dumps(environment)


def test_the_gpus_that_the_user_may_see():
    assert container.gpu_ids(2, None) == ["0", "1"]
    assert container.gpu_ids(1, "3,5") == ["3"]
    assert container.gpu_ids(1, "GPU-8a1f") == ["GPU-8a1f"]


def test_a_container_has_no_right_of_a_superuser_and_no_end_of_processes(tmp_path):
    """What the engine is asked for, as its own client writes it: an image is somebody else's program."""
    pytest.importorskip("docker", reason="needs the docker package")
    from docker.models.containers import _create_container_args

    from launcher.backends.docker.backend import DockerBackend

    job = job_of(model={"base": "/nowhere/base"}, data={"sources": [{"path": "/nowhere/data.jsonl"}]})
    train = node_job(job, tmp_path)
    record = RunRecord("t-1", tmp_path / "run", "t", "docker", 0.0)
    settings = DockerBackend()._settings(Submission(record, job, train), container.Mounts((), (train.run_dir,)), [])
    asked = _create_container_args({"image": "i", "version": "1.44", **settings})["host_config"]
    assert asked["CapDrop"] == ["ALL"]
    assert asked["PidsLimit"] == 16384
    assert asked["SecurityOpt"] == ["no-new-privileges"]
    assert not asked.get("Privileged")
    assert not asked.get("CapAdd")
    assert asked["NetworkMode"] == "none"
    assert settings["environment"]["PYTHONSAFEPATH"] == "1"


def test_a_link_among_the_data_mounts_nothing_of_the_home_folder(tmp_path):
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / ".bashrc").write_text("export TOKEN=1")
    (home / "data" / "a.jsonl").write_text("{}")
    (home / "data" / "x.jsonl").symlink_to(home / ".bashrc")
    job = job_of(model={"base": "owner/base"}, data={"sources": [{"path": str(home / "data")}]})
    with pytest.raises(BadUsage, match=r"x\.jsonl is a link to .*\.bashrc, outside of"):
        container.mounts_of(job, node_job(job, tmp_path))
