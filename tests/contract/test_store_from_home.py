"""A bucket is tried from home before anything is paid, and a node is told how this machine reaches it.

The disaster: an hour of provisioning eight GPUs, and then "the store refuses these credentials".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.sky import store_access
from launcher.backends.sky.backend import SkyRuns
from launcher.backends.sky.bucket_copy import copy_prefix
from launcher.backends.sky.task import build_task, places_of, relay_config, ship
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage
from tests.support import object_stores
from tests.support.fault_proxy import FaultProxy
from trainer.run.spec import NodeJob
from trainer.run.stores import aws, object_store
from trainer.run.stores.lease import Lease
from trainer.run.stores.object_store import ObjectStore


@pytest.fixture
def proxy(object_server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(*object_server) as found:
        for name, value in object_stores.environment(found.url, retry_s=1).items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setattr(store_access, "PATIENCE_S", 0.3)
        monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
        yield found


class Sky:
    def enabled(self) -> list[str]:
        return ["aws"]

    def jobs(self, part: str, *, active_only: bool) -> list[Any]:
        return []

    def check_task(self, task: dict[str, Any]) -> None:
        pass


def job_of(store: str = "s3://bucket/home", **more: Any) -> JobSpec:
    return JobSpec.model_validate({
        "name": "demo",
        "model": {"base": "owner/base"},
        "data": {"sources": [{"path": "s3://bucket/data/x.jsonl"}]},
        "checkpoint": {"store": store},
        "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        "resources": {"accelerators": "L40S:1"},
    } | more)  # fmt: skip


def train_of(job: JobSpec) -> NodeJob:
    return NodeJob(
        run_id="demo-1", run_dir="/d/demo-1", cache_dir="/d/cache", nproc=1, device="cuda", spec=job.train_spec()
    )


def preflight(job: JobSpec) -> list[str]:
    return SkyRuns(Sky()).preflight(job, train_of(job), {})


def test_a_bucket_is_written_read_and_cleaned_before_the_question(proxy: FaultProxy) -> None:
    preflight(job_of())
    tried = [one.method for one in proxy.requests if "/home/demo-1/probe-" in one.path or "delete" in one.path]
    assert tried == ["PUT", "GET", "POST"]
    client = store_access.open_at_home("s3://bucket/home/demo-1", os.environ)
    assert client.list() == {}


@pytest.mark.parametrize(
    ("store", "rule", "said"),
    [
        ("s3://bucket/home", "403", "the store refuses these credentials"),
        ("s3://bucket/home", "503", "s3://bucket/home/demo-1: "),
        ("s3://bucket/home", "no-delete", "the store refuses these credentials"),
        ("s3://no-such-bucket/home", "", "there is no such bucket"),
    ],
)
def test_a_store_that_would_refuse_on_the_node_is_refused_in_a_line_before_anything_is_paid(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, store: str, rule: str, said: str
) -> None:
    def fault(request: Any) -> str | None:
        return "403" if rule == "no-delete" and "?delete" in request.path else rule if rule in ("403", "503") else None

    proxy.rule = fault
    with pytest.raises(BadUsage) as refusal:
        preflight(job_of(store))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    monkeypatch.setenv(store_access.PROBE_VARIABLE, "off")
    preflight(job_of(store))


def test_a_run_that_a_node_writes_is_not_started_beside_it(proxy: FaultProxy) -> None:
    """Another laptop, or an API server that forgot the job: SkyPilot here knows of none."""
    lease = Lease(ObjectStore("s3://bucket/home/demo-1"), "demo-1", "node-a", "holder-of-node-a")
    lease.take(2)
    with pytest.raises(BadUsage, match=r"node node-a writes this run \(attempt 2, heard of \d s ago\)"):
        preflight(job_of())
    lease.release()
    preflight(job_of())


def test_keys_of_this_shell_alone_are_no_keys_of_a_node(proxy: FaultProxy) -> None:
    with pytest.raises(
        BadUsage, match=r"credentials \(env\) do not travel, and a node at aws has none: write `secrets:"
    ):
        preflight(job_of(secrets=[]))
    places = {"accelerators": "L40S:1", "infra": ["aws", "slurm/lab"]}
    (line,) = preflight(job_of(secrets=[], resources=places))
    assert "a node at aws has none" in line
    assert preflight(job_of(secrets=[], resources={"accelerators": "L40S:1", "infra": "slurm/lab"})) == []


def test_an_instance_of_amazon_s_has_a_role_for_amazon_s_own_buckets(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "endpoint", lambda environment: None)
    environment = {"AWS_ENDPOINT_URL": ""}
    places = places_of(job_of(), ["aws"])
    assert store_access._credentials_there(job_of(secrets=[]), "s3://bucket/home", places, environment) == []


def test_the_node_is_told_the_endpoint_the_region_and_the_profile_in_docker_on_it_too(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = LABKEY\naws_secret_access_key = w\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    job = store_access.with_environment(job_of(secrets=[]), tmp_path)
    sent = {
        "AWS_ENDPOINT_URL_S3": proxy.url, "DOLPHIN_BUCKET_REGIONS": "bucket=us-east-1", "DOLPHIN_AWS_PROFILE": "lab",
    }  # fmt: skip
    assert json.loads((tmp_path / store_access.FILE).read_text()) == sent
    train = train_of(job)
    task = build_task(job, train, places_of(job, ["aws"]), ship(train), tmp_path)
    assert sent.items() <= task["envs"].items()
    assert set(sent) <= set(relay_config(job, train, [])["env"])
    assert "LABKEY" not in json.dumps(task)


def test_a_run_is_fetched_from_a_shell_that_does_not_know_where_its_bucket_is(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = job_of(env={"AWS_ENDPOINT_URL": proxy.url})
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_REGION")
    store_access.with_environment(job, tmp_path)
    environment = store_access.environment_of_run(tmp_path)
    store_access.open_at_home("s3://bucket/fetched", environment).put("model/config.json", b"{}")
    copy_prefix("s3://bucket/fetched/model", tmp_path / "model", environment)
    assert (tmp_path / "model" / "config.json").read_bytes() == b"{}"
    assert preflight(job) == []
