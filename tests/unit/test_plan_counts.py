"""What plans are counted from: shapes of models, FLOPs, bytes on the wire, hours under preemption, past runs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from launcher.models.adapters import adapted
from launcher.models.architecture import TrainedModel, count, find_architecture, from_config, trainable
from launcher.plan.gpu_memory import Workload
from launcher.plan.gpus import find_card
from launcher.plan.history import known_data, measured_utilisation, past_runs
from launcher.plan.preemption import RESTART_S, with_preemptions, without_preemption
from launcher.plan.throughput import offload_cost, step_flops, step_time, step_traffic
from launcher.plan.zero_stage import Pace
from launcher.runs import ledger
from trainer.run.exits import BadInput
from trainer.run.run_folder import EventKind, append_line
from trainer.run.settings.adapter import AdapterSpec
from trainer.run.settings.data import DataSpec, SourceSpec
from trainer.run.settings.model import ModelSpec
from trainer.run.settings.train import OptimizerSettings
from trainer.run.spec import NodeJob, TrainSpec

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VARIANTS = [
    ("llama", {}), ("llama", {"tie_word_embeddings": True}), ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"head_dim": 32}), ("qwen2", {}), ("qwen3", {}), ("gemma", {}), ("gemma2", {}), ("phi3", {}), ("olmo2", {}),
    ("smollm3", {}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "more"), VARIANTS)
def test_a_models_parameters_are_those_that_transformers_builds(family: str, more: dict[str, object]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ignored = {"head_dim"} if family in ("phi3", "olmo2", "qwen2") and "head_dim" not in more else set()
    config = {key: value for key, value in {**SMALL, **more}.items() if key not in ignored}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert from_config({"model_type": family, **config}, "x").shapes == built


@pytest.mark.parametrize(
    ("base", "parameters"),
    [
        ("meta-llama/Meta-Llama-3.1-8B", 8_030_261_248), ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496), ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("Qwen/Qwen2.5-7B", 7_615_616_512), ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768), ("Qwen/Qwen3-8B", 8_190_735_360),
    ],
)  # fmt: skip
def test_known_models_have_their_published_size(base: str, parameters: int) -> None:
    assert find_architecture(base).num_parameters == parameters


def test_a_model_that_nobody_knows_is_an_error_with_a_way_out() -> None:
    with pytest.raises(BadInput, match=r"config\.json"):
        find_architecture("somebody/unheard-of")
    with pytest.raises(BadInput, match="mamba"):
        from_config({"model_type": "mamba"}, "x")


def test_a_tied_head_trains_the_embedding() -> None:
    tied = from_config({"model_type": "llama", **SMALL, "tie_word_embeddings": True}, "x")
    assert trainable(tied, [r"^lm_head\.weight$"]) == {"model.embed_tokens.weight"}
    with pytest.raises(BadInput, match="matches no parameter"):
        trainable(tied, [r"layers\.80\."])


def test_training_all_costs_six_flops_a_parameter_and_token() -> None:
    model = find_architecture("meta-llama/Meta-Llama-3.1-8B")
    everything = trainable(model, None)
    flops = step_flops(
        TrainedModel(model, everything), tokens=1, labelled=1, attention_span=0, gradient_checkpointing=False
    )
    matrices = sum(count(shape) for name, shape in model.shapes.items() if len(shape) == 2 and "embed" not in name)
    assert flops.total == 6 * matrices
    again = step_flops(
        TrainedModel(model, everything), tokens=1, labelled=1, attention_span=0, gradient_checkpointing=True
    )
    assert again.recomputation == 2 * (matrices - count(model.shapes["lm_head.weight"]))


def test_frozen_weights_have_no_gradient_of_their_own_and_nothing_is_done_below_the_lowest_trained() -> None:
    model = find_architecture("meta-llama/Meta-Llama-3.1-8B")
    top = trainable(model, [r"layers\.31\.mlp\.down_proj"])
    flops = step_flops(TrainedModel(model, top), tokens=1, labelled=0, attention_span=0, gradient_checkpointing=True)
    assert flops.weight_gradients == 2 * 4096 * 14336
    layer = 2 * sum(count(shape) for shape in model.layer_shapes(31).values() if len(shape) == 2)
    assert (flops.activation_gradients, flops.recomputation) == (layer, layer)
    assert flops.forward == 32 * layer


def test_one_gpu_sends_nothing_and_higher_stages_send_more() -> None:
    sizes = {"parameters": 1000, "trained": 500, "micro_batches": 4, "bytes_per_element": 2}
    assert step_traffic(stage=3, ranks=1, **sizes).total_bytes == 0
    sent = [step_traffic(stage=stage, ranks=8, **sizes).total_bytes for stage in range(4)]
    assert sent == [7 / 8 * 2 * n for n in (1000, 2 * 1000 + 500, 4 * 1000 + 500, 4 * 2500)], "stage 1 sums in fp32"
    alone = step_traffic(stage=1, ranks=8, **{**sizes, "micro_batches": 1})
    assert alone.total_bytes == 7 / 8 * 2 * 1500, "there is nothing to sum"


@pytest.mark.parametrize(("every", "passes"), [(0, 2), (1, 3), (2, 2.5)])
def test_weights_in_4_bits_are_unpacked_forward_backward_and_where_a_layer_is_recomputed(
    every: int, passes: float
) -> None:
    """The step of a plan has it; beside a base that is not packed there is nothing of it."""
    architecture, card = find_architecture("Qwen/Qwen2.5-0.5B"), find_card("H100")
    assert card is not None
    kinds = {kind: adapted(architecture, AdapterSpec(type=kind)) for kind in ("lora", "qlora")}
    load = Workload(
        ranks=8, micro_batch=1, sequence_length=128, micro_batches=4, loss_chunk=64, gradient_checkpointing=every
    )
    pace = Pace(card, None, 1.0, 64, False)
    steps = {kind: pace.step(model, load, 1) for kind, model in kinds.items()}
    assert kinds["qlora"].num_quantised > 300e6
    expected = 4 * passes * kinds["qlora"].num_quantised * (0.5 + 1 / 64 + 4 / (64 * 256) + 2) / 3350e9
    assert steps["lora"].unpacking_s == 0
    assert steps["qlora"].unpacking_s == pytest.approx(expected)
    assert steps["qlora"].total_s == pytest.approx(steps["lora"].total_s + expected)


def test_an_optimizer_on_the_host_costs_the_bus_and_the_host() -> None:
    """Of 8 ranks with 100 elements each: gradients in fp32 down, the update in low precision up; stage 3 accumulates there."""
    sizes = {"ranks": 8, "trained": 800, "bytes_per_element": 2}
    once, thrice = (offload_cost(stage=1, micro_batches=number, **sizes) for number in (1, 4))
    assert once == thrice
    assert once.bus_bytes == 100 * (4 + 2)
    assert offload_cost(stage=3, micro_batches=4, **sizes).bus_bytes == 100 * (4 + 2 * 3 * 4 + 4 + 2)
    model, card = find_architecture("Qwen/Qwen2.5-0.5B"), find_card("H100")
    assert card is not None
    flops = step_flops(
        TrainedModel.by_patterns(model, None), tokens=8, labelled=8, attention_span=4, gradient_checkpointing=False
    )
    traffic = step_traffic(stage=1, ranks=8, parameters=800, trained=800, micro_batches=1, bytes_per_element=2)
    with_it, without = (step_time(flops, traffic, card, 8, offload=cost) for cost in (once, None))
    assert with_it.total_s == pytest.approx(without.total_s + with_it.offload_s)
    assert with_it.offload_s == pytest.approx(600 / (63e9 * 0.6) + 100 * (40 + 2) / 20e9)


def test_a_slow_link_shows_and_a_fast_one_hides() -> None:
    model = find_architecture("Qwen/Qwen2.5-0.5B")
    everything = trainable(model, None)
    flops = step_flops(
        TrainedModel(model, everything),
        tokens=8 * 512,
        labelled=8 * 512,
        attention_span=256,
        gradient_checkpointing=False,
    )
    traffic = step_traffic(
        stage=3,
        ranks=8,
        parameters=model.num_parameters,
        trained=model.num_parameters,
        micro_batches=1,
        bytes_per_element=2,
    )
    slow, fast = find_card("L40S"), find_card("H200")
    assert slow is not None
    assert fast is not None
    assert step_time(flops, traffic, slow, 8).communication_s > 5 * step_time(flops, traffic, fast, 8).communication_s


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("l40s", "L40S"), ("NVIDIA L40S", "L40S"), ("NVIDIA GeForce RTX 4090", "RTX4090"), ("A100-80GB-SXM", "A100-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA RTX A6000", "RTXA6000"),
    ],
)  # fmt: skip
def test_cards_are_found_under_the_names_that_clouds_and_drivers_use(written: str, name: str) -> None:
    card = find_card(written)
    assert card is not None
    assert card.name == name


def test_hours_under_preemption_agree_with_the_renewal_formula() -> None:
    work, save, interval, per_day = 40 * 3600.0, 30.0, 1800.0, 6.0
    rate, cycle = per_day / 86_400, interval + save
    mean_s = work / interval * (math.exp(rate * cycle) - 1) * (1 / rate + RESTART_S)
    found = with_preemptions(work, save, interval, per_day)
    assert found.mean == pytest.approx(mean_s / 3600, rel=0.01)
    assert found.p10 < found.mean < found.p90
    assert found == with_preemptions(work, save, interval, per_day)
    assert without_preemption(work, save, interval).mean < found.p10


def test_a_job_that_never_reaches_a_save_is_infinite_and_not_an_endless_plan() -> None:
    assert math.isinf(with_preemptions(3600 * 40, 10, 3600 * 12, 100).mean)


def _run(tokens_per_second: float) -> TrainSpec:
    spec = TrainSpec(
        name="past", model=ModelSpec(base="Qwen/Qwen2.5-0.5B"),
        data=DataSpec(sources=(SourceSpec(path="/data/a.jsonl"),)), train=OptimizerSettings(global_batch=8, zero=1),
    )  # fmt: skip
    record = ledger.create(ledger.new_id("past"), "past", "local", nproc=8)
    job = NodeJob(run_id=record.run_id, run_dir="/r", cache_dir="/c", nproc=8, device="cuda", spec=spec)
    record.files.train_json.write_text(job.model_dump_json())
    record.files.job.write_text("resources: {accelerators: 'L40S:8'}\n")
    record.files.emit(
        EventKind.PLAN, attempt=1, sequences=100, conversations=50, tokens=10_000, trained_tokens=5_000, total_steps=9
    )
    for step in range(1, 8):
        speed = tokens_per_second if step > 3 else 1.0
        append_line(record.files.metrics, {"step": step, "attempt": 1, "tokens_per_second": speed})
    return spec


def test_what_a_run_measured_replaces_what_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    spec = _run(400_000.0)
    model, card = find_architecture(spec.model.base), find_card("L40S")
    assert card is not None
    runs = past_runs()
    measured = measured_utilisation(runs, spec, model, card)
    assert measured is not None
    flops = 6 * model.num_parameters * 400_000 / (8 * card.bf16_tflops * 1e12)
    assert measured[0] == pytest.approx(flops, rel=0.25)
    assert measured_utilisation(runs, spec, model, dataclasses.replace(card, name="other")) is None
    offloaded = spec.model_copy(update={"train": spec.train.model_copy(update={"offload": "optimizer"})})
    assert measured_utilisation(runs, offloaded, model, card) is None
    facts = known_data(runs, spec)
    assert facts is not None
    assert (facts.basis, facts.sequences, facts.labelled_share) == ("prepared", 100, 0.5)
    other = spec.model_copy(update={"data": DataSpec(sources=(SourceSpec(path="/data/b.jsonl"),))})
    assert known_data(runs, other) is None


@pytest.mark.parametrize(
    ("infra", "nodes", "submissions", "expected"),
    [("AWS/us-east-1/use1-az1", 3, 1, 2), ("AWS/us-east-1/use1-az1", 3, 2, 1), ("Slurm/lab/spot", 3, 1, None)],
)
def test_only_nodes_that_a_spot_market_took_away_teach_a_rate(
    infra: str, nodes: int, submissions: int, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person's stop and resume is no preemption, and a cluster that sells no spot nodes says nothing of one that does."""
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    _run(1000.0)
    [record] = ledger.all_runs()
    ledger.update(record, submissions=submissions)
    for number in range(nodes):
        append_line(record.folder / "nodes.jsonl", {"time": number, "infra": infra})
    [run] = past_runs()
    assert (run.preemptions if run.is_on_spot else None) == expected


def test_a_damaged_run_folder_spoils_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    _run(1000.0)
    broken = ledger.create(ledger.new_id("broken"), "broken", "local")
    broken.files.train_json.write_text(json.dumps({"no": "job"}))
    assert len(past_runs()) == 1
