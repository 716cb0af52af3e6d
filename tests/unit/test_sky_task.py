"""A job as a SkyPilot task: what each cloud can do, what travels, and what must not be in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.backends import confinement, release
from launcher.backends.base import Offer
from launcher.backends.sky.controller import NO_CONTROLLER, refuse_homeless
from launcher.backends.sky.node.relay import Relay
from launcher.backends.sky.offers import priced
from launcher.backends.sky.ship import pack
from launcher.backends.sky.task import (
    DISK_TIERS,
    NO_DOCKER_IMAGE,
    NO_MANY_NODES,
    NO_SPOT,
    Place,
    build_task,
    folder_store,
    image_of,
    places_of,
    relay_config,
    requirements,
    ship,
)
from launcher.jobfile.settle import Placement, settle
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage
from tests.support.require import needs_skypilot
from trainer.run.settings.adapter import AdapterSpec
from trainer.run.spec import NodeJob

IMAGE = "me/dolphin:1"
CLOUDS = ["aws", "gcp", "nebius", "runpod", "oci", "kubernetes", "shadeform", "slurm/lab"]


def job_of(**resources: Any) -> JobSpec:
    return JobSpec.model_validate({
        "name": "demo",
        "model": {"base": "meta-llama/Meta-Llama-3.1-8B"},
        "data": {"sources": [{"path": "hf://owner/data"}]},
        "checkpoint": {"store": "s3://bucket/runs"},
        "secrets": ["HF_TOKEN"],
        "resources": {"accelerators": "L40S:8", "image": IMAGE, **resources},
    })  # fmt: skip


def train_of(job: JobSpec) -> NodeJob:
    place = Placement("/tmp/dolphin/demo", "/tmp/dolphin/cache", 8, "cuda")
    return settle(job, place, run_id="demo-261123-101010-abcd", zero=3)


def task_of(job: JobSpec, **more: Any) -> dict[str, Any]:
    train = train_of(job)
    places = more.pop("places", None) or places_of(job, ["aws"])
    return build_task(job, train, places, ship(train), Path("/ship"), **more)


def entries(task: dict[str, Any]) -> list[dict[str, Any]]:
    return task["resources"].get("ordered") or [task["resources"]]


@pytest.mark.parametrize("infra", CLOUDS)
def test_no_cloud_is_asked_for_what_it_refuses(infra: str) -> None:
    for entry in entries(task_of(job_of(infra=infra))):
        cloud = infra.partition("/")[0]
        assert not (entry["use_spot"] and cloud in NO_SPOT)
        assert ("image_id" in entry) == (cloud not in NO_DOCKER_IMAGE)
        assert entry["accelerators"] == "L40S:8"
        assert entry["job_recovery"]["recover_on_exit_codes"] == [75]
        assert 64 not in entry["job_recovery"]["recover_on_exit_codes"]


@pytest.mark.parametrize("infra", [*CLOUDS, ["aws", "shadeform"]])
@needs_skypilot
def test_skypilot_s_own_parser_takes_the_task(infra: str | list[str]) -> None:
    import sky

    job = job_of(infra=infra, max_hourly_cost=40, memory_gb=128)
    parsed = sky.Task.from_yaml_config(task_of(job, secrets={"HF_TOKEN": "x"}))
    spot = {resource.use_spot for resource in parsed.resources}
    assert spot == {place.spot for place in places_of(job, [])}
    assert {resource.memory for resource in parsed.resources} == {"128+"}


@needs_skypilot
def test_the_tables_of_what_clouds_refuse_are_skypilot_s() -> None:
    from sky.clouds.cloud import CloudImplementationFeatures as Feature
    from sky.utils.resources_utils import DiskTier

    import sky
    from sky import clouds

    for infra in CLOUDS:
        name = infra.partition("/")[0]
        cloud = next(cls for cls in vars(clouds).values() if isinstance(cls, type) and cls.__name__.lower() == name)
        refused = vars(cloud).get("_CLOUD_UNSUPPORTED_FEATURES")  # most keep a table, some compute it
        refused = refused or cloud._unsupported_features_for_resources(sky.Resources())
        assert (Feature.SPOT_INSTANCE in refused) == (name in NO_SPOT), name
        assert (Feature.DOCKER_IMAGE in refused) == (name in NO_DOCKER_IMAGE), name
        assert (Feature.MULTI_NODE in refused) == (name in NO_MANY_NODES), name
        assert (Feature.HOST_CONTROLLERS in refused) == (name in NO_CONTROLLER), name
        assert (DiskTier.HIGH in cloud._SUPPORTED_DISK_TIERS) == (name in DISK_TIERS), name


def test_the_cheapest_place_is_tried_first_and_an_unknown_price_last() -> None:
    places = [Place("oci"), Place("aws", False, 30.13), Place("aws", True, 3.41)]
    tried = [(entry["infra"], entry["use_spot"]) for entry in entries(task_of(job_of(), places=places))]
    assert tried == [("aws", True), ("aws", False), ("oci", False)]


@needs_skypilot
def test_skypilot_keeps_the_order_of_what_is_tried() -> None:
    """Its jobs controller makes a list of `any_of`, in the order of a set: on demand came first at nine times the price."""
    import sky

    places = [Place("aws", True, 3.41), Place("gcp", True, 9.0), Place("aws", False, 30.13), Place("gcp", False, 31.0)]
    parsed = sky.Task.from_yaml_config(task_of(job_of(), places=places))
    for _ in range(2):  # as it is sent, and as the controller reads it again
        assert isinstance(parsed.resources, list), "a set has no order"
        assert [(str(one.cloud).lower(), one.use_spot) for one in parsed.resources] == [
            (p.infra, p.spot) for p in places
        ]
        parsed = sky.Task.from_yaml_config(parsed.to_yaml_config())


def test_with_a_cap_only_regions_below_it_are_asked_for() -> None:
    """SkyPilot holds a cap against the cheapest region that has the machine, and goes on to the others of the cloud."""
    offers = [Offer("sky", "aws/a/a1", "L40S", 8, True, 5.0), Offer("sky", "aws/b/b1", "L40S", 8, True, 7.0),
              Offer("sky", "aws/a", "L40S", 8, False, 12.0)]  # fmt: skip
    capped = job_of(max_hourly_cost=15, infra="aws")
    found = priced(capped, places_of(capped, []), offers)
    assert [(place.infra, place.spot, place.price_usd_per_hour) for place in found] == [
        ("aws/a", True, 5.0), ("aws/b", True, 7.0), ("aws/a", False, 12.0),
    ]  # fmt: skip
    free = job_of(infra="aws")
    assert [place.infra for place in priced(free, places_of(free, []), offers)] == ["aws", "aws"]


@pytest.mark.parametrize("infra", CLOUDS)
def test_a_disk_that_a_save_fits_onto_in_time_is_asked_for_where_disks_are_sold_by_speed(infra: str) -> None:
    """SkyPilot's own choice on AWS writes the reference job's save in 250 s, and a spot notice is 120 s."""
    for entry in entries(task_of(job_of(infra=infra))):
        assert entry.get("disk_tier") == ("high" if infra in DISK_TIERS else None)
    assert entries(task_of(job_of(infra="aws", disk_tier="best")))[0]["disk_tier"] == "best"


def test_spot_only_where_nobody_sells_spot_is_an_error_and_not_a_silent_on_demand_node() -> None:
    with pytest.raises(BadUsage, match="sells no spot"):
        places_of(job_of(spot="only", infra=["shadeform", "slurm/lab"]), [])
    assert [place.spot for place in places_of(job_of(spot="never", infra="aws"), [])] == [False]


def test_several_nodes_are_not_asked_of_a_cloud_whose_clusters_are_one_node() -> None:
    found = places_of(job_of(num_nodes=2, infra=["runpod", "aws"], spot="never"), [])
    assert [place.infra for place in found] == ["aws"]
    with pytest.raises(BadUsage, match=r"resources\.num_nodes: 2, but on runpod, shadeform a cluster is one node"):
        places_of(job_of(num_nodes=2, infra=["runpod", "shadeform"]), [])


def test_kubernetes_is_asked_for_the_disk_that_the_job_states_and_for_no_other() -> None:
    """It is a request for ephemeral storage there: without it a pod is evicted, with the default few nodes take it."""
    for infra in ("kubernetes", "ssh/pool"):
        assert entries(task_of(job_of(infra=infra, disk_gb=200)))[0]["disk_size"] == 200
        assert "disk_size" not in entries(task_of(job_of(infra=infra)))[0]
    assert entries(task_of(job_of(infra="aws")))[0]["disk_size"] == 512
    assert "disk_size" not in entries(task_of(job_of(infra="slurm/lab", disk_gb=200)))[0]


def test_a_managed_job_needs_a_cloud_that_can_hold_its_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    refuse_homeless([Place("lambda"), Place("aws")], ["lambda", "aws"])
    refuse_homeless([Place("lambda")], ["lambda", "gcp"])
    with pytest.raises(
        BadUsage, match=r"lambda, shadeform cannot hold SkyPilot's jobs controller.*consolidation_mode.*--cluster"
    ):
        refuse_homeless([Place("shadeform"), Place("lambda")], ["lambda", "shadeform"])
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "https://sky.example")
    refuse_homeless([Place("lambda")], ["lambda"])  # another machine, which may hold it itself
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "http://127.0.0.1:46580")
    with pytest.raises(BadUsage, match="cannot hold"):
        refuse_homeless([Place("lambda")], ["lambda"])
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky" / "config.yaml").write_text("jobs: {controller: {consolidation_mode: true}}\n")
    refuse_homeless([Place("lambda")], ["lambda"])


def test_regions_narrow_every_infra_that_names_none() -> None:
    places = places_of(job_of(infra=["aws", "gcp/us-central1"], regions=["us-east-1", "us-west-2"], spot="never"), [])
    assert [place.infra for place in places] == ["aws/us-east-1", "aws/us-west-2", "gcp/us-central1"]


def test_a_container_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(BadUsage, match="runs no docker images"):
        task_of(job_of(container="image", infra="shadeform"))
    slurm = entries(task_of(job_of(container="image", infra="slurm/lab")))
    assert slurm[0]["image_id"] == f"docker:{IMAGE}"
    assert "image_id" not in entries(task_of(job_of(container="none", image=None, infra="aws")))[0]
    assert task_of(job_of(container="docker", infra="aws"))["envs"]["DOLPHIN_CONTAINER"] == "docker"


def test_without_an_image_the_node_installs_the_trainer_and_none_that_nobody_published_is_pulled() -> None:
    task = task_of(job_of(image=None, infra=["aws", "oci"]))
    assert [entry for entry in entries(task) if "image_id" in entry] == []
    assert (task["envs"]["DOLPHIN_CONTAINER"], task["envs"]["DOLPHIN_IMAGE"]) == ("none", "")
    with pytest.raises(BadUsage, match=r"no resources\.image; build one"):
        task_of(job_of(container="docker", image=None, infra="aws"))


def test_a_release_trains_in_its_own_image_unless_the_job_brings_an_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = {"cpu": f"r.example/dolphin@sha256:{'a' * 64}", "cuda": f"r.example/dolphin@sha256:{'b' * 64}"}
    (tmp_path / "images.json").write_text(json.dumps(images))
    monkeypatch.setattr(release, "FILE", str(tmp_path / "images.json"))
    job = job_of(image=None, infra=["aws", "oci"])
    task, train = task_of(job), train_of(job)
    assert [entry.get("image_id") for entry in entries(task)].count(f"docker:{images['cuda']}") == 2, (
        "spot and not, on AWS"
    )
    assert (task["envs"]["DOLPHIN_CONTAINER"], task["envs"]["DOLPHIN_IMAGE"]) == ("auto", images["cuda"])
    assert relay_config(job, train, [])["image"] == images["cuda"]
    assert image_of(job, train.model_copy(update={"device": "cpu"})) == images["cpu"]
    assert image_of(job_of(infra="aws"), train) == IMAGE
    assert image_of(job_of(image=None, container="none"), train) is None
    for name in ("DOLPHIN_PYTHON", "DOLPHIN_TORCH_INDEX"):
        own = job.model_copy(update={"env": {name: "x"}})
        assert image_of(own, train) is None, f"{name} would be ignored in an image"
        assert task_of(own)["envs"]["DOLPHIN_CONTAINER"] == "none"


def test_a_secret_s_value_is_in_the_secrets_alone(tmp_path: Path) -> None:
    job = job_of()
    train = train_of(job)
    task = task_of(job, secrets={"HF_TOKEN": "hf_very_secret"})
    assert task.pop("secrets") == {"HF_TOKEN": "hf_very_secret"}
    folder = pack(tmp_path, job, train, ship(train), ["HF_TOKEN"])
    shipped = "".join(path.read_text() for path in folder.glob("*.*"))
    assert "hf_very_secret" not in json.dumps(task) + shipped
    reaching = relay_config(job, train, ["HF_TOKEN", "SKYPILOT_DOCKER_PASSWORD"])["env"]
    assert "HF_TOKEN" in reaching
    assert "SKYPILOT_DOCKER_PASSWORD" not in reaching, "a registry's password is SkyPilot's, and no business of a run"


def test_local_files_travel_once_and_train_json_names_them_as_the_node_sees_them(tmp_path: Path) -> None:
    data, model = tmp_path / "data.jsonl", tmp_path / "model"
    model.mkdir()
    (tmp_path / "more").mkdir()
    for path in (data, model / "config.json", tmp_path / "more" / "a.jsonl"):
        path.write_text("{}")
    job = JobSpec.model_validate({
        "name": "demo",
        "model": {"base": str(model), "tokenizer": str(model), "chat_template": "{{ messages }}"},
        "data": {"sources": [{"path": str(data)}, {"path": f"{tmp_path}/more/*.jsonl"}, {"path": "hf://owner/data"}]},
        "resources": {"accelerators": "L40S:8"},
    })  # fmt: skip
    shipment = ship(train_of(job))
    spec = NodeJob.model_validate_json(shipment.train_json).spec
    assert [one.path for one in shipment.inputs] == [str(model), str(data), f"{tmp_path}/more/*.jsonl"]
    assert spec.model.base == spec.model.tokenizer
    assert str(tmp_path) not in shipment.train_json
    assert spec.data.sources[1].path.endswith("/more/*.jsonl")
    assert spec.data.sources[2].path == "hf://owner/data"
    assert spec.model.chat_template == "{{ messages }}"
    mounts = shipment.file_mounts(tmp_path)
    for source in [spec.model.base, *(s.path for s in spec.data.sources[:2])]:
        assert any(source.replace("@DATA@", "~/dolphin-data").startswith(there) for there in mounts)


def test_a_bucket_is_no_folder_of_the_node() -> None:
    job = job_of()
    assert folder_store(job) is None
    shared = job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"store": "/shared/me/"})})
    assert folder_store(shared) == "/shared/me"
    assert task_of(shared)["envs"]["DOLPHIN_VENVS"] == "/shared/me", "a recovery would install everything again"


def test_a_container_on_the_node_sees_the_keys_that_skypilot_sent_there(tmp_path: Path) -> None:
    job = job_of()
    config = relay_config(job, train_of(job), [])
    assert "~/.aws" in config["reads"]
    assert "AWS_SHARED_CREDENTIALS_FILE" in config["env"]
    shared = job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"store": "/shared/me/"})})
    assert "~/.aws" not in relay_config(shared, train_of(shared), [])["reads"]


def test_a_node_with_a_bucket_is_asked_for_a_save_before_it_is_torn_down(tmp_path: Path) -> None:
    (hook,) = task_of(job_of())["config"]["hooks"]
    assert hook["events"] == ["down", "preemption"]
    assert "/STOP" in hook["run"]
    job = job_of()
    shared = job.model_copy(update={"checkpoint": job.checkpoint.model_copy(update={"store": "/shared/me/"})})
    assert "config" not in task_of(shared), "there home asks through the folder itself"


def test_the_node_installs_what_the_trainer_needs_and_not_the_launcher_s_tools() -> None:
    names = requirements(job_of())
    assert "torch" in names
    assert "pydantic" in names
    assert "typer" not in names
    assert "skypilot" not in names
    assert "peft" not in names


def test_the_node_installs_what_this_very_job_asks_for() -> None:
    """A job with an adapter was sent to a node without peft, which refused it there, at the price of the node."""
    job = job_of()
    adapted = job.model_copy(update={"train": job.train.model_copy(update={"adapter": AdapterSpec(type="lora")})})
    assert "peft" in requirements(adapted)


@pytest.mark.parametrize(
    ("mapping", "user"), [("", "--user=@ME@"), ("rootless", "--user=0:0"), ("userns", "--user=@ME@")]
)
def test_a_container_on_a_node_is_confined_as_one_at_home(tmp_path: Path, monkeypatch, mapping: str, user: str) -> None:
    """It kept the rights of a superuser over the node's own files, and ran as root."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f"#!/bin/sh\necho '[name=seccomp,profile=builtin name={mapping}]'\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOLPHIN_CONTAINER", "docker")
    job = job_of(container="docker", infra="aws")
    config = relay_config(job, train_of(job), ["HF_TOKEN"]) | {"run_dir": str(tmp_path / "run")}
    config |= {"reads": [str(tmp_path / "data")], "mounts": [str(tmp_path / "cache")]}
    command = Relay(json.loads(json.dumps(config)), str(tmp_path / "inputs"))._python("me/dolphin:1", "dolphin-x")
    assert confinement.CONFINEMENT == {
        "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "pids_limit": 16384
    }  # fmt: skip
    for option in ("--cap-drop=ALL", "--security-opt=no-new-privileges", "--pids-limit=16384", "--env=HOME=/tmp"):
        assert option in command
    assert user.replace("@ME@", f"{os.getuid()}:{os.getgid()}") in command
    assert ("--userns=host" in command) == (mapping == "userns")
    seen = [command[number + 1] for number, word in enumerate(command) if word == "-v"]
    assert [mount.endswith(":ro") for mount in seen] == [False, True, True, False], seen
    assert command[-3:] == ["--entrypoint", "python", "me/dolphin:1"]
