"""A job that asks for eight GPUs must not run on a laptop's CPU, nor may anybody say yes to a place or a price unseen."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from launcher.backends import base
from launcher.backends.base import BACKENDS, Offer, Upkeep, backend_for, default_backend
from launcher.backends.home import machine
from launcher.backends.home.local import LocalBackend
from launcher.backends.sky import controller
from launcher.commands import launch as launching
from launcher.commands.launch import LaunchOptions, Start
from launcher.config.yaml_lines import write_yaml
from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec
from launcher.plan.costs import num_saves_of
from launcher.plan.launch_plan import LaunchPlan, Subject
from launcher.plan.make import make_plan
from launcher.plan.of_job import owned_offers, plan_of
from launcher.plan.view import place_and_price, show, summarise
from launcher.runs import ledger
from launcher.runs.errors import BackendError, BadUsage
from tests.support.dolphin_cli import write_job
from tests.unit.test_plan_reference import ON_DEMAND, SEQUENCES, SPOT, job_of, model_of, stated
from trainer.run.run_folder import write_atomic

GIB = 2**30


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))


def plan(job: JobSpec, offers: list[Offer], **more: Any) -> LaunchPlan:
    return make_plan(Subject(job, model_of(job), stated(SEQUENCES)), offers, **more)


def test_a_job_with_accelerators_goes_to_a_cluster_and_one_without_stays_here(tmp_path: Path) -> None:
    assert default_backend(job_of()) == "sky"
    assert default_backend(load_job(write_job(tmp_path))) == "local"
    assert default_backend(job_of("on=docker")) == "docker"
    assert LaunchOptions().on is None, "the command line decides where the person said nothing"


def test_every_place_may_stand_in_a_job_and_no_other(tmp_path: Path) -> None:
    named = get_args(get_args(JobSpec.model_fields["on"].annotation)[0])
    assert set(named) == set(BACKENDS)
    text = json.loads(write_job(tmp_path).read_text()) | {"on": "local"}
    (tmp_path / "job.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in text.items()))
    assert load_job(tmp_path / "job.yaml").on == "local", "on is a word, not YAML 1.1's true"


def test_a_cluster_that_is_not_to_be_had_is_told_with_the_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise BackendError(f"--on {name}: SkyPilot is not installed here")

    monkeypatch.setattr(base, "get_backend", missing)
    with pytest.raises(BackendError, match=r"not installed here; .*--on local or --on docker"):
        backend_for(job_of(), None)
    with pytest.raises(BackendError, match=r"not installed here$"):
        backend_for(job_of(), "sky")


def test_a_machine_with_the_gpus_is_offered_at_no_price_and_never_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus = [("NVIDIA L40S", 46_068)] * 8
    monkeypatch.setattr(machine, "local_gpus", lambda: gpus)
    job = job_of()
    (mine,) = [offer for offer in owned_offers(job, besides="sky") if offer.backend == "local"]
    assert (mine.price_usd_per_hour, mine.count, mine.accelerator) == (0.0, 8, "L40S")
    assert owned_offers(job, besides="local") == [], "it is planned there already"
    made = plan(job, [SPOT], owned=[mine])
    assert [row.offer for row in made.rows] == [SPOT]
    assert made.owned[0].is_possible
    show(made)
    said = capsys.readouterr().err
    assert "this machine has the GPUs, at no price: dolphin launch --on local" in said
    gpus[:] = [("NVIDIA L40S", 46_068)] * 7
    assert owned_offers(job, besides="sky") == [], "seven are not eight"
    gpus[:] = [("NVIDIA L4", 23_034)] * 8
    assert owned_offers(job, besides="sky") == [], "an L4 is no L40S"


def start_of(made: LaunchPlan, name: str = "sky") -> Start:
    backend = type("Backend", (), {"name": name})()
    return Start(backend, job_of(), tuple(row.offer for row in made.rows), made, "", {}, None)


def test_the_question_names_the_place_and_the_price(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    launching._confirm(LaunchOptions(), start_of(plan(job_of(), [SPOT, ON_DEMAND])))
    asked = capsys.readouterr().err
    assert asked.startswith("Start it on sky: aws/eu-south-2/a, spot, $3.41/h; $")
    assert "at most? [y/N]" in asked
    here = Offer("local", "local", None, 2)
    assert place_and_price(plan(job_of(), [here])) == "local, at no price"
    assert launching._question(start_of(plan(job_of(), [here]), "local")) == "Start it on local, at no price?"


def test_what_does_not_fit_is_an_error_on_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference job on a laptop's CPU: 110 GB on a machine of 24."""
    monkeypatch.setattr(machine, "local_gpus", list)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 24 * GIB)
    job = job_of()
    laptop = plan(job, LocalBackend().offers(job, 2))
    with pytest.raises(BadUsage, match=r"does not fit: local has 24 GiB of memory, needs \d+.*--force"):
        launching._refuse_what_does_not_fit(start_of(laptop, "local"))
    small = dataclasses.replace(SPOT, accelerator="A10G", accelerator_memory_mib=22_888)
    with pytest.raises(BadUsage, match=r"aws/eu-south-2/a lacks .*would fit"):
        launching._refuse_what_does_not_fit(start_of(plan(job_of("train.zero=3"), [small])))
    launching._refuse_what_does_not_fit(start_of(plan(job, [small, SPOT])))
    assert start_of(plan(job, [small, SPOT])).fitting_offers == (SPOT,), "what cannot hold the run is not asked for"


def test_a_resume_that_does_not_fit_any_more_is_refused_as_a_launch_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--set train.micro_batch=64`, and the run ended for want of memory after a node was paid for."""
    monkeypatch.setattr(machine, "local_gpus", list)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2**16)
    record = ledger.create("demo-1", "demo", "local")
    job = load_job(write_job(tmp_path))
    write_atomic(record.files.job, write_yaml(job.model_dump(mode="json", exclude_unset=True)))
    monkeypatch.setattr(launching, "_start", lambda *_: 7)
    with pytest.raises(BadUsage, match=r"does not fit: local has .*--force"):
        launching.resume(record, LaunchOptions())
    assert launching.resume(record, LaunchOptions(is_forced=True)) == 7


def test_a_small_job_is_not_refused_on_a_small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "local_gpus", list)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 2 * GIB)
    job = load_job(write_job(tmp_path))
    made = plan_of(job, LocalBackend().offers(job, None))
    assert made.is_possible
    assert made.cost is None


def test_a_price_is_always_shown_with_the_worst_case_the_controller_and_what_leaves_the_region(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = job_of("checkpoint.store=s3://bucket/runs")
    controller_vm = Upkeep("a controller", 0.2)
    made = plan(job, [SPOT, ON_DEMAND], upkeep=[controller_vm])
    cost, (spot, on_demand) = made.cost, made.rows
    assert cost is not None
    assert spot.price_usd is not None
    assert spot.hours is not None
    assert on_demand.price_usd is not None
    assert on_demand.hours is not None
    assert cost.expected == pytest.approx(spot.price_usd[1] + 0.2 * spot.hours.mean)
    assert cost.worst == pytest.approx(on_demand.price_usd[2] + 0.2 * on_demand.hours.p90)
    assert (cost.worst_infra, cost.worst_on_spot) == ("aws/us-east-1", False)
    assert cost.egress is not None
    assert cost.egress.usd_per_gb == 0.02
    assert cost.egress.num_bytes == cost.egress.num_saves * made.checkpoint_bytes
    elsewhere = plan(job_of("checkpoint.store=gs://bucket/runs"), [SPOT]).cost
    assert elsewhere is not None
    assert elsewhere.egress is not None
    assert (elsewhere.egress.usd_per_gb, elsewhere.egress.leaves_cloud) == (0.09, True)
    assert plan(job_of("checkpoint.store=/shared"), [SPOT]).cost.egress is None  # type: ignore[union-attr]
    for shown in (show, summarise):
        shown(made)
        said = capsys.readouterr().err
        for words in (
            "$3.41/h; $",
            " expected, $",
            " at most (all on demand, at aws/us-east-1",
            "a controller, $0.20/h",
            "saves, ",
        ):
            assert words in said, (shown, words)


def test_saves_that_leave_the_region_are_counted_by_steps_and_not_by_the_hours_of_a_start() -> None:
    """Of a job of six steps thousands of saves were counted: the minutes in which a node is made ready held so many intervals."""
    job = job_of(
        "checkpoint.store=s3://bucket/runs", "train.max_steps=6", "train.warmup_steps=1", "checkpoint.every={steps: 2}"
    )
    cost = plan(job, [SPOT]).cost
    assert cost is not None
    assert cost.egress is not None
    assert cost.egress.num_saves == 3
    assert [num_saves_of(7, 1.0, 2.0), num_saves_of(7, 1.0, 900.0), num_saves_of(7, 1.0, 0.1)] == [4, 1, 7]


def test_a_place_that_a_job_names_in_vain_is_told_with_where_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asked for a cloud and ran on the laptop, without a word."""
    path = write_job(tmp_path)
    job = load_job(path, ["resources.infra=aws"])
    assert default_backend(job) == "local"
    summarise(plan_of(job, LocalBackend().offers(job, None)))
    assert "resources.infra: not asked for: without resources.accelerators the job runs here (local)" in " ".join(
        capsys.readouterr().err.split()
    )
    made = plan_of(load_job(path), LocalBackend().offers(load_job(path), None))
    assert not [note for note in made.notes if "not asked for" in note]


def test_the_controllers_price_is_the_catalogs_and_none_where_there_is_no_vm_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOLPHIN_CATALOGS", str(tmp_path / "catalogs"))
    job = job_of()
    (assumed,) = controller.upkeep(job, {})
    assert assumed.price_usd_per_hour == controller.ASSUMED_USD_PER_HOUR
    folder = tmp_path / "catalogs" / "v8" / "aws"
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch\n"
        "m6i.xlarge,,,4.0,16.0,,0.192,0.07,us-east-1,use1-az1,x86_64\nm6i.large,,,2.0,8.0,,0.096,,us-east-1,use1-az1,x86_64\n"
        "g6e.48xlarge,L40S,8.0,192.0,1536.0,,0.01,,us-east-1,use1-az1,x86_64\n"
    )
    assert controller.upkeep(job, {})[0].price_usd_per_hour == 0.192
    assert controller.upkeep(job, {"cluster": "mine"}) == []
    assert controller.upkeep(job_of("resources.infra=k8s"), {}) == []
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky" / "config.yaml").write_text("jobs: {controller: {consolidation_mode: true}}\n")
    assert controller.upkeep(job, {}) == []
