"""`dolphin plan` on the reference job: a wrong number here is a bill, or a run that dies of memory in its first step."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from launcher.backends.base import Offer
from launcher.backends.sky.catalog import catalog_offers
from launcher.commands.plan import PlanOptions, deadline_hours, plan_command
from launcher.config.problems import SpecErrors
from launcher.jobfile.load import load_job
from launcher.jobfile.regions import catalog_folder
from launcher.jobfile.spec import JobSpec, ResourcesSpec
from launcher.models.architecture import TrainedModel, find_architecture
from launcher.plan.data_facts import DataFacts, estimated, stated
from launcher.plan.gpu_memory import CUDA_CONTEXT, NCCL_BUFFERS
from launcher.plan.launch_plan import LaunchPlan, Subject
from launcher.plan.make import make_plan
from launcher.plan.of_job import settled_zero, with_memory, with_recomputation
from launcher.plan.throughput import BUS_EFFICIENCY
from launcher.plan.view import show, summarise
from launcher.runs.errors import BadUsage
from launcher.units import MIB
from trainer.run.settings.data import DataSpec, SourceSpec
from trainer.run.settings.train import RecomputeEvery

EXAMPLE = Path(__file__).parents[2] / "examples" / "dolphin-2.9.4-llama3.1-8b.yaml"
CATALOGS = os.environ.get("DOLPHIN_SKY_CATALOGS")
SEQUENCES = 291_840
SPOT = Offer("sky", "aws/eu-south-2/a", "L40S", 8, True, 3.41, 45_776, "g6e.48xlarge")
ON_DEMAND = Offer("sky", "aws/us-east-1", "L40S", 8, False, 30.13, 45_776, "g6e.48xlarge")
TOO_SMALL = Offer("sky", "aws/us-east-1", "RTX3090", 8, True, 1.00, 24_268)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home"))


def job_of(*overrides: str) -> JobSpec:
    return load_job(EXAMPLE, overrides)


def plan_for(
    job: JobSpec, offers: list[Offer], data: DataFacts | None = None, deadline_h: float | None = None
) -> LaunchPlan:
    return make_plan(Subject(job, model_of(job), data or stated(SEQUENCES)), offers, deadline_h=deadline_h)


def model_of(job: JobSpec) -> TrainedModel:
    assert isinstance(job.train.unfrozen, tuple)
    return TrainedModel.by_patterns(find_architecture(job.model.base), job.train.unfrozen)


def test_the_reference_jobs_steps_batch_and_parameters() -> None:
    plan = plan_for(job_of(), [SPOT])
    assert (plan.steps.total, plan.steps.per_epoch, plan.steps.global_batch) == (3420, 1140, 256)
    assert (plan.steps.micro_batches, plan.steps.tokens_per_step) == (16, 256 * 8192)
    assert (plan.num_trained, plan.num_parameters) == (4_540_600_320, 8_030_261_248)
    assert plan.steps.evaluations == (0, 1140, 2280, 3420)
    assert plan.checkpoint_bytes == 12 * 4_540_600_320


def test_a_stage_with_a_margin_that_is_not_there_is_not_taken() -> None:
    """torch sees 44.3 GiB of an L40S, DeepSpeed opens two communicators, and stage 1 sums gradients whole, in fp32."""
    plan = plan_for(job_of("train.zero=auto"), [SPOT])
    machine = plan.machines[0]
    assert machine.memory_bytes == 45_403 * MIB
    assert [(option.stage, option.fits) for option in machine.options] == [(1, False), (2, True), (3, True)]
    assert machine.chosen.memory.parts["CUDA and NCCL"] == CUDA_CONTEXT + 2 * NCCL_BUFFERS
    assert machine.chosen.stage == 2
    sent = [option.traffic.total_bytes for option in machine.options]
    assert sent == sorted(sent)
    [why] = [note for note in plan.notes if "rather than 1" in note]
    assert "stage 1 does not fit" in why
    assert "16 micro batches in fp32, whole on every GPU" in why


def test_stages_are_ranked_by_seconds_and_those_as_fast_by_memory_to_spare() -> None:
    def chosen(card: str, mib: int, *overrides: str) -> int:
        offer = Offer("x", "x", card, 8, True, 3.41, mib)
        return plan_for(job_of("train.zero=auto", *overrides), [offer]).machines[0].chosen.stage

    assert chosen("H100", 81_559) == 1, "all are as fast, and it has room enough"
    assert chosen("H100", 63_000) == 2, "stage 1 fits, with less to spare"
    assert chosen("L40S", 46_068) == 2, "stage 3 is no faster by more than a prediction is worth"
    fast = plan_for(job_of("train.zero=auto", "train.micro_batch=1", "train.accumulation=4"), [SPOT]).machines[0]
    times = {option.stage: option.time.total_s for option in fast.options if option.fits and option.time}
    assert fast.chosen.stage == min(times, key=lambda stage: times[stage]), times


def test_as_little_is_recomputed_as_fits_and_the_launch_says_so_to_the_trainer() -> None:
    """To recompute every layer costs a quarter of the arithmetic; on a card with room it buys nothing."""
    auto = ("train.zero=auto", "train.gradient_checkpointing=auto")
    found = {}
    for card, mib in (("L40S", 46_068), ("H100", 81_559), ("B200", 183_359), ("RTX3090", 24_268)):
        job = job_of(*auto)
        plan = plan_for(job, [Offer("x", "x", card, 8, True, 3.41, mib)])
        settled = with_recomputation(job, plan).train
        assert settled.recompute_every == plan.machine.recompute_every
        found[card] = settled.recompute_every
        less = {0: 8, 8: 4, 4: 3, 3: 2, 2: 1, 1: 1}
        if found[card] > 1 or found[card] == 0:
            assert plan.machine.chosen.fits
            stated = plan_for(job.model_copy(update={"train": settled}), [Offer("x", "x", card, 8, True, 3.41, mib)])
            assert stated.machine.step_s == plan.machine.step_s
            more = settled.model_copy(update={"gradient_checkpointing": RecomputeEvery(every=less[found[card]])})
            slower = plan_for(job.model_copy(update={"train": more}), [Offer("x", "x", card, 8, True, 3.41, mib)])
            assert (slower.machine.step_s or 0) > (plan.machine.step_s or 0)
    assert found["B200"] == 0
    assert found["RTX3090"] == 1
    assert found["H100"] > 1, "some of it"
    assert with_recomputation(job_of(*auto), None).train.recompute_every == 1, "a model whose shape is not known"


def test_a_job_that_does_not_fit_is_told_what_would() -> None:
    machine = plan_for(job_of("resources.accelerators=RTX3090:8"), [TOO_SMALL]).machines[0]
    assert machine.chosen.fits is False
    same_result = [choice for choice in machine.choices if choice.fits and "adapter" not in choice.change]
    assert same_result[0] == machine.choices[0]
    assert any("micro_batch: 1" in choice.change for choice in same_result)
    for choice in same_result:
        changed = job_of("resources.accelerators=RTX3090:8", *_as_overrides(choice.change))
        again = plan_for(changed, [TOO_SMALL]).machines[0].chosen
        assert (again.fits, again.memory.total) == (True, choice.total_bytes)


def test_an_optimizer_on_the_host_is_among_what_would_fit_with_its_numbers() -> None:
    """Seventy billion parameters fit eight L40S no other way; what does not suffice is told too."""
    job = job_of("model.base=meta-llama/Llama-3.1-70B", "train.unfrozen=['layers.[1357]']")
    machine = plan_for(job, [SPOT]).machines[0]
    assert machine.chosen.fits is False
    first = machine.choices[0]
    assert (first.fits, "offload: optimizer" in first.change) == (True, True)
    assert first.host_gib is not None
    assert first.step_s is not None
    assert first.step_s > (machine.step_s or 0)
    assert {"loss_chunk: 512", "micro_batch: 1"} <= {choice.change.partition(", ")[2] for choice in machine.choices}
    assert not any(choice.fits for choice in machine.choices if "offload" not in choice.change)
    changed = job_of(
        "model.base=meta-llama/Llama-3.1-70B", "train.unfrozen=['layers.[1357]']", *_as_overrides(first.change)
    )
    again = plan_for(changed, [SPOT]).machines[0]
    assert (again.chosen.fits, again.chosen.memory.total) == (True, first.total_bytes)
    assert (again.step_s, again.host_gib) == (first.step_s, first.host_gib)


def _as_overrides(change: str) -> list[str]:
    """A choice as it is written in a plan, for `--set`; the batch of a step stays."""
    settings = dict(part.split(": ") for part in change.split(", "))
    if "micro_batch" in settings:
        settings["accumulation"] = str(32 // int(settings["micro_batch"]))
    return [f"train.{key}={value}" for key, value in settings.items()]


def test_no_choice_changes_more_than_it_takes() -> None:
    choices = plan_for(job_of("resources.accelerators=RTX3090:8"), [TOO_SMALL]).machines[0].choices
    said = [set(re.split(r", (?![^{]*})", choice.change)[1:]) for choice in choices if choice.fits]
    assert said[:3] == [
        {"offload: optimizer"}, {"activation_offloading: true"}, {"micro_batch: 1", "loss_chunk: 512"}
    ]  # fmt: skip
    another_result = [any("adapter" in change for change in changes) for changes in said]
    assert another_result == [False, False, False, True, True], "LoRA and QLoRA come last: they are another result"


def test_activations_on_the_host_leave_the_gpu_and_take_the_bus() -> None:
    """32 inputs of 2 x 8,192 x 4,096 numbers in bf16 on each of 8 ranks, of which one is back at a time."""
    moved, kept = (plan_for(job_of(*more), [SPOT]).machines[0] for more in (["train.activation_offloading=true"], []))
    size = 2 * 2 * 8192 * 4096
    saved = kept.chosen.memory.parts["activations"] - moved.chosen.memory.parts["activations"]
    assert 20 * size < saved <= 31 * size
    assert moved.host["activations"] == 8 * 32 * size
    assert moved.host_gib > kept.host_gib + 30
    assert (moved.step_s or 0) == pytest.approx((kept.step_s or 0) + 2 * 16 * 32 * size / (31.5e9 * BUS_EFFICIENCY))


def test_a_plan_with_an_optimizer_on_the_host_says_what_that_costs() -> None:
    with_it, without = plan_for(job_of("train.offload=optimizer"), [SPOT]), plan_for(job_of(), [SPOT])
    offloaded, kept = with_it.machines[0], without.machines[0]
    assert offloaded.chosen.memory.total < kept.chosen.memory.total
    assert (offloaded.step_s or 0) > (kept.step_s or 0)
    assert offloaded.host_gib > kept.host_gib
    assert any("fits without train.offload" in note for note in with_it.notes)
    assert not any("offload" in note for note in without.notes)


def test_a_plan_says_that_what_follows_the_training_is_paid_besides() -> None:
    asked = job_of("evaluate.tasks=[gsm8k]", "evaluate.max_minutes=30", "export.gguf=[f16]")
    (told,) = [note for note in plan_for(asked, [SPOT]).notes if "come after training" in note]
    assert told.startswith("evaluate.tasks and export.gguf come after training, on the same node")
    assert "evaluations 30 minutes at most" in told
    assert not any("come after training" in note for note in plan_for(job_of(), [SPOT]).notes)


def test_a_node_with_too_little_memory_of_its_own_is_not_possible() -> None:
    small, large = (dataclasses.replace(SPOT, infra=f"aws/{gib}", host_memory_gib=gib) for gib in (64.0, 1536.0))
    unknown = dataclasses.replace(SPOT, infra="aws/unknown")
    plan = plan_for(job_of(), [small, large, unknown])
    assert {row.offer.infra for row in plan.rows if row.is_possible} == {"aws/1536.0", "aws/unknown"}
    assert "has 64 GiB of host memory" in plan.rows[-1].why_not
    assert any("resources.memory_gb" in note for note in plan.notes)


def test_a_launch_asks_for_the_host_memory_that_the_plan_needs() -> None:
    job = job_of("train.offload=optimizer", "train.zero=auto")
    plan = plan_for(job, [SPOT])
    needed = plan.machine.host_gib
    assert needed > 64
    assert with_memory(job, plan, "cuda").resources.memory_gb == needed
    stated = job_of("train.offload=optimizer", "resources.memory_gb=64")
    assert with_memory(stated, plan, "cuda").resources.memory_gb == 64
    assert with_memory(job, plan, "cpu").resources.memory_gb is None
    assert with_memory(job, None, "cuda").resources.memory_gb is None, "a model whose shape is not known"


def test_stage_0_has_nothing_to_offload() -> None:
    job = job_of("train.offload=optimizer", "train.zero=auto", "train.precision=fp32", "resources.accelerators=H200:1")
    gpu, cpu = Offer("x", "x", "H200", 1, accelerator_memory_mib=143_771), Offer("x", "x", None, 1)
    assert settled_zero(job, plan_for(job, [gpu]), ranks=1, device="cuda") in (1, 2, 3)
    assert settled_zero(job, plan_for(job, [cpu]), ranks=1, device="cpu") == 1
    with pytest.raises(SpecErrors, match=r"train\.offload: contradicts train\.zero 0"):
        job_of("train.offload=optimizer", "train.zero=0")


def test_the_cheapest_that_is_possible_comes_first_and_what_is_not_comes_last() -> None:
    plan = plan_for(job_of(), [TOO_SMALL, ON_DEMAND, SPOT])
    assert [row.offer for row in plan.rows] == [SPOT, ON_DEMAND, TOO_SMALL]
    assert "lacks" in plan.rows[2].why_not


def test_preemptions_cost_hours_and_the_deadline_counts_the_unlucky() -> None:
    plan = plan_for(job_of(), [SPOT, ON_DEMAND])
    spot, on_demand = (row.hours for row in plan.rows)
    assert spot is not None
    assert on_demand is not None
    assert on_demand.p10 == on_demand.p90 < spot.p10 < spot.mean < spot.p90
    between = plan_for(job_of(), [SPOT, ON_DEMAND], deadline_h=(spot.mean + spot.p90) / 2)
    assert [row.meets_deadline for row in between.rows] == [False, True]


def test_fewer_labels_never_make_a_plan_slower() -> None:
    few = DataFacts(
        "prepared", "x", SEQUENCES, conversations=2_000_000, tokens=2_000_000_000, trained_tokens=500_000_000
    )
    assert (plan_for(job_of(), [SPOT], few).machines[0].step_s or 0) < (
        plan_for(job_of(), [SPOT]).machines[0].step_s or 0
    )


def test_without_data_the_steps_are_unknown_and_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    job = job_of()
    plan = make_plan(Subject(job, model_of(job)), [SPOT])
    assert plan.steps.total is None
    summarise(plan)
    assert "--sequences" in capsys.readouterr().err


def test_an_estimate_says_that_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"x" * 4_400_000)
    data = DataSpec(sources=(SourceSpec(path=str(tmp_path)),), sequence_length=1000, validation_fraction=0.0)
    facts = estimated(data)
    assert facts is not None
    assert (facts.basis, facts.tokens) == ("estimate", 1_000_000)
    assert facts.sequences == pytest.approx(1010, abs=1)
    assert estimated(DataSpec(sources=(SourceSpec(path="hf://owner/name"),))) is None


def test_the_same_plan_twice() -> None:
    assert plan_for(job_of(), [SPOT, ON_DEMAND]) == plan_for(job_of(), [SPOT, ON_DEMAND])


def test_launch_settles_the_stage_that_the_plan_shows() -> None:
    auto, stated = job_of("train.zero=auto"), job_of("train.zero=3")
    assert settled_zero(auto, plan_for(auto, [SPOT]), ranks=8, device="cuda") == 2
    assert settled_zero(stated, plan_for(stated, [SPOT]), ranks=8, device="cuda") == 3
    assert settled_zero(auto, plan_for(auto, [Offer("x", "x", None, 1)]), ranks=1, device="cpu") == 0


def test_a_model_of_unknown_shape_takes_the_stage_that_needs_least() -> None:
    auto, offloaded = job_of("train.zero=auto"), job_of("train.zero=auto", "train.offload=optimizer")
    assert settled_zero(auto, None, ranks=8, device="cuda") == 3
    assert settled_zero(auto, None, ranks=2, device="cpu") == 1
    assert settled_zero(auto, None, ranks=1, device="cpu") == 0
    assert settled_zero(offloaded, None, ranks=1, device="cuda") == 3
    assert settled_zero(offloaded, None, ranks=1, device="cpu") == 1, "stage 0 has nothing to offload"


def test_fewer_ranks_than_gpus_are_planned_as_such() -> None:
    """Half of the ranks hold twice the share of what ZeRO partitions: a plan for eight would fit where four do not."""
    job = job_of("train.zero=3", "train.global_batch=256")
    eight, four = (
        make_plan(Subject(job, model_of(job), stated(SEQUENCES)), [SPOT], nproc=n).machine for n in (None, 4)
    )
    assert (eight.count, four.count) == (8, 4)
    assert four.chosen.memory.total > eight.chosen.memory.total


def test_the_screen_shows_bars_stages_and_offers(capsys: pytest.CaptureFixture[str]) -> None:
    show(plan_for(job_of(), [SPOT, ON_DEMAND], deadline_h=72))
    text = capsys.readouterr().err
    for words in (
        "3,420 steps",
        "4,540,600,320 of 8,030,261,248",
        "45,403 MiB",
        "to spare",
        "in 72 h",
        "aws/us-east-1",
    ):
        assert words in text


@pytest.mark.parametrize(("text", "hours"), [("72h", 72.0), ("3d", 72.0), ("90m", 1.5)])
def test_deadlines(text: str, hours: float) -> None:
    assert deadline_hours(text) == hours


@pytest.mark.parametrize("text", ["72", "soon", "0h"])
def test_deadlines_that_are_none(text: str) -> None:
    with pytest.raises(BadUsage, match="--deadline"):
        deadline_hours(text)


@pytest.mark.skipif(CATALOGS is None, reason="DOLPHIN_SKY_CATALOGS names no folder with SkyPilot catalogs")
def test_the_real_catalogs_prices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DOLPHIN_CATALOGS", str(CATALOGS))
    offers = catalog_offers(ResourcesSpec(accelerators="L40S:8"), catalog_folder())
    cheapest = {spot: next(offer for offer in offers if offer.spot is spot) for spot in (True, False)}
    assert cheapest[False].infra == "aws/us-east-1"
    assert round(cheapest[False].price_usd_per_hour, 2) == 30.13
    assert cheapest[True].infra.startswith("aws/ap-northeast-2/"), "what is cheaper has to be asked for"
    assert round(cheapest[True].price_usd_per_hour, 2) == 5.42
    assert cheapest[True].accelerator_memory_mib == 45_776
    assert plan_command(EXAMPLE, PlanOptions(("train.zero=auto",), True, SEQUENCES, "72h", offline=True)) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["steps"]["total"] == 3420
    assert record["rows"][0]["offer"]["infra"].startswith("aws/ap-northeast-2/")
    assert record["machines"][0]["chosen"]["stage"] == 2


def test_filters_of_the_job_hold_for_the_catalog(tmp_path: Path) -> None:
    folder = tmp_path / "v8" / "aws"
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,GpuInfo,Price,SpotPrice,Region,AvailabilityZone\n"
        "a,L40S,8.0,,30.0,10.0,r1,r1a\na,L40S,8.0,,30.0,12.0,r1,r1b\na,L40S,1.0,,2.0,1.0,r1,r1a\nb,L40S,8.0,,40.0,,r2,\n"
    )

    def seen(**resources: object) -> list[tuple[str, bool]]:
        wanted = ResourcesSpec.model_validate({"accelerators": "L40S:8", **resources})
        return [(offer.infra, offer.spot) for offer in catalog_offers(wanted, tmp_path / "v8")]

    assert seen() == [("aws/r1/r1a", True), ("aws/r1/r1b", True), ("aws/r1", False), ("aws/r2", False)]
    assert seen(spot="never") == [("aws/r1", False), ("aws/r2", False)]
    assert seen(spot="only", max_hourly_cost=11) == [("aws/r1/r1a", True)]
    assert seen(regions=["r2"]) == [("aws/r2", False)]
    assert seen(infra=["aws/r1/r1b"]) == [("aws/r1/r1b", True)]
    assert seen(infra=["gcp"]) == []
