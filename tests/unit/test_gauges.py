"""What a step cost, beside its loss: figures that a person buys machines by must be those of the plan, and no sensor ends a run."""

from __future__ import annotations

import pytest
import torch

from launcher.follow.run_view import RunView
from launcher.follow.status import gpu_text, speed_text
from launcher.models.architecture import TrainedModel, find_architecture
from launcher.plan.gpus import find_card
from launcher.plan.throughput import step_flops, work_of
from trainer.rank.gauges import Gauges, StepCost
from trainer.run.spec import NodeJob
from trainer.run.work import Work

COST = StepCost(tokens=1000, trained_tokens=400, pairs=90_000, seconds=2.0, data_wait_s=0.1, save_stall_s=0.4)
WORK = Work(token_flops=3e9, label_flops=1e9, pair_flops=1e6, repeated_token_flops=1e9, repeated_pair_flops=0.0, peak_tflops=10.0)  # fmt: skip


def job(device: str, work: Work | None, nproc: int = 1) -> NodeJob:
    spec = {"name": "t", "model": {"base": "/m"}, "data": {"sources": [{"path": "/d"}]}}
    return NodeJob.model_validate(
        {
            "run_id": "r",
            "run_dir": "/r",
            "cache_dir": "/c",
            "nproc": nproc,
            "device": device,
            "spec": spec,
            "work": work,
        }
    )


@pytest.mark.parametrize("again", [False, True])
def test_work_is_the_plans_formula(again: bool) -> None:
    """Of a model with frozen layers, at any step: what a run reports and what the plan promised are counted alike."""
    model = TrainedModel.by_patterns(
        find_architecture("meta-llama/Meta-Llama-3.1-8B"), ("layers.(2[0-9]|3[01]).mlp", "lm_head")
    )
    card = find_card("H100")
    work = work_of(model, again, card)
    tokens, labels, span = 12_345.0, 4_321.0, 700.0
    step = step_flops(model, tokens=tokens, labelled=labels, attention_span=span, gradient_checkpointing=again)
    once = step_flops(model, tokens=tokens, labelled=labels, attention_span=span, gradient_checkpointing=False)
    assert work.done(tokens, labels, span * tokens) == pytest.approx(step.total, rel=1e-12)
    assert work.needed(tokens, labels, span * tokens) == pytest.approx(once.total, rel=1e-12)
    assert work.peak_tflops == 989.0
    assert NodeJob.model_validate_json(job("cuda", work).model_dump_json()).work == work


def test_a_step_says_its_speed_and_what_it_waited_for() -> None:
    found = Gauges(job("cpu", WORK, nproc=2), torch.device("cpu")).read(COST)
    assert found == {
        "tokens_per_second": 500.0, "trained_tokens_per_second": 200.0, "data_wait_s": 0.1, "save_stall_s": 0.4,
        "tflops": pytest.approx((3e12 + 0.4e12 + 0.09e12) / 4 / 1e12),
    }  # fmt: skip
    assert "tflops" not in Gauges(job("cpu", None), torch.device("cpu")).read(COST), (
        "a model that the launcher could not count"
    )


class Gpu:
    """Stands in for torch.cuda's questions; NVML is not there from the second step on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        for name, answer in {"max_memory_allocated": 61 << 30, "memory_reserved": 63 << 30, "temperature": 61}.items():
            monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "power_draw", self.power)

    def power(self, device: torch.device) -> int:
        self.asked += 1
        if self.asked > 1:
            raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
        return 412_000


def test_a_gpu_without_sensors_is_asked_once_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = Gpu(monkeypatch)
    gauges = Gauges(job("cuda", WORK), torch.device("cuda", 0))
    first, second, third = (gauges.read(COST) for _ in range(3))
    assert (first["gpu_power_w"], first["gpu_temperature_c"], first["gpu_memory_bytes"]) == (412.0, 61.0, 61 << 30)
    assert first["mfu"] == pytest.approx((2e12 + 0.4e12 + 0.09e12) / 2 / 1e13), "recomputation is no use"
    assert "gpu_power_w" not in second | third
    assert gpu.asked == 2
    assert capsys.readouterr().out.count("power and temperature of the GPU are not recorded") == 1


def test_status_tells_speed_waits_and_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch)
    view = RunView()
    line = {"step": 1, "loss": 1.0, "seconds": 2.0, **Gauges(job("cuda", WORK), torch.device("cuda", 0)).read(COST)}
    view.add_metric(line)
    view.add_metric(line | {"step": 2, "data_wait_s": 0.0, "save_stall_s": 0.0})
    assert (
        speed_text(view)
        == "200 trained tokens/s · 1.75 TFLOP/s a rank · 12% MFU · waits 2.5% for data, 10.0% for saves"
    )
    assert gpu_text(view) == "65.5 GB at its peak, 67.6 GB reserved · 412 W · 61 °C"
    older = RunView()
    older.add_metric({"step": 1, "loss": 1.0, "seconds": 2.0, "tokens_per_second": 9.0, "mfu": "fast"})
    assert (speed_text(older), gpu_text(older)) == ("", ""), "an older trainer says less"
