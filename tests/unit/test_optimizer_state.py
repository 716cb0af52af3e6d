"""A plan that counts other bytes than training holds, or a checkpoint without one of the tensors, is found out when it is dear."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from launcher.models.architecture import TrainedModel, count, find_architecture
from launcher.plan.gpu_memory import Workload, moments_bytes, moments_of
from launcher.plan.host_memory import host_memory, offloaded
from launcher.plan.throughput import offload_cost
from tests.support.checkpoint_folder import SETTINGS, completer, snapshot, writer
from trainer.checkpoint.manifest import MANIFEST, CorruptCheckpoint, Manifest
from trainer.checkpoint.shards import ShardReader
from trainer.engine import optimizer as optim
from trainer.engine.adamw_8bit import MOMENTS, AdamW8bit
from trainer.run.optimizer_state import OPTIMIZER_STATES, OptimizerState, StateTensor
from trainer.run.settings.train import OptimizerSettings
from trainer.run.stores.base import FolderStore

HALF = OptimizerState(moments=(StateTensor("momentum_buffer", "bfloat16"),))
"""An optimizer with one moment, in half precision."""


def test_every_optimizer_that_a_job_can_name_is_described_and_can_be_built() -> None:
    named = get_args(OptimizerSettings.model_fields["optimizer"].annotation)
    assert named
    assert set(named) == set(OPTIMIZER_STATES) == set(optim.OPTIMIZERS)


@pytest.mark.parametrize("name", sorted(OPTIMIZER_STATES))
def test_the_description_is_what_the_optimizer_really_keeps(name: str) -> None:
    model = nn.ModuleDict({"embed": nn.Linear(64, 64), "linear": nn.Linear(64, 64)})
    optimizer = optim.build(model, OptimizerSettings(optimizer=name))
    (model["embed"](torch.ones(1, 64)) + model["linear"](torch.ones(1, 64))).sum().backward()
    optimizer.step()
    described = OPTIMIZER_STATES[name]
    for parameter_name, parameter in model.named_parameters():
        kept = {key: value for key, value in optimizer.state[parameter].items() if key != "step"}
        moments = described.moments_of(parameter_name, tuple(parameter.shape))
        held = {key: str(value.dtype) for key, value in kept.items() if not key.endswith("_scales")}
        assert held == {moment.name: f"torch.{moment.dtype}" for moment in moments}
        if parameter.dim() == 2:  # scales of a block that is not full are no share of an element
            counted = described.moment_bytes([(parameter_name, tuple(parameter.shape))])
            assert counted == sum(value.nbytes for value in kept.values())


def test_a_checkpoint_has_the_tensors_of_the_description_and_no_others(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(OPTIMIZER_STATES, "half", HALF)
    settings = {**SETTINGS, "train.optimizer": "half"}
    writer(tmp_path).save(3, "id", snapshot(3, state=HALF), completer(3, "id", result_settings=settings))
    folder = tmp_path / "step-00000003"
    manifest = Manifest.decode((folder / MANIFEST).read_bytes(), folder.name)
    master, moment = ShardReader(manifest, [FolderStore(tmp_path)]).read("w", 4, 20)
    expected = 3 + torch.arange(35)[4:24] / 35
    assert torch.equal(master, expected)
    assert torch.equal(moment, -expected)
    assert {name.rpartition(".")[2] for name in load_file(next(folder.glob("*.safetensors")))} == {
        "master", "momentum_buffer",
    }  # fmt: skip


def test_a_checkpoint_of_an_optimizer_that_is_not_known_is_refused_rather_than_read_wrongly(tmp_path) -> None:
    settings = {**SETTINGS, "train.optimizer": "tomorrow"}
    writer(tmp_path).save(3, "id", snapshot(3), completer(3, "id", result_settings=settings))
    folder = tmp_path / "step-00000003"
    with pytest.raises(
        CorruptCheckpoint, match="of the optimizer tomorrow, this program knows adamw, adamw_8bit, muon"
    ):
        Manifest.decode((folder / MANIFEST).read_bytes(), folder.name)


def test_the_plan_counts_what_the_description_says() -> None:
    architecture = find_architecture("Qwen/Qwen2.5-0.5B")
    model = TrainedModel.by_patterns(architecture, None)
    sizes = {"ranks": 8, "micro_batch": 1, "sequence_length": 128, "micro_batches": 2, "loss_chunk": 128}
    adam, half = Workload(**sizes), Workload(**sizes, optimizer=HALF)
    share = model.num_trained / 8
    for stage in (1, 2, 3):
        by_adam, by_half = (moments_of(model, load, stage)["step"] for load in (adam, half))
        assert (by_adam["optimizer"], by_half["optimizer"]) == (8 * share, 2 * share)
        assert by_adam["master weights"] == by_half["master weights"] == 4 * share
    muon, eight = (moments_bytes(model, OPTIMIZER_STATES[name]) for name in ("muon", "adamw_8bit"))
    assert muon < 8 * model.num_trained
    assert muon - 4 * model.num_trained == pytest.approx(
        4 * count(architecture.shapes["model.embed_tokens.weight"]), rel=0.01
    )
    assert eight == pytest.approx((2 + 8 / 256) * model.num_trained)
    copies = [host_memory(model, load, 3)["copies for saves"] for load in (adam, half)]
    assert copies == [12 * 8 * share, 8 * 8 * share]
    assert offloaded(model, half, 3)["optimizer"] == 2 * share
    costs = [
        offload_cost(stage=1, ranks=8, trained=800, micro_batches=1, bytes_per_element=2, **more).update_bytes
        for more in ({}, {"optimizer": HALF})
    ]
    assert costs == [100 * (40 + 2), 100 * (28 + 2)]


def test_moments_of_8_bits_are_read_and_rounded_back_to_the_same_bits() -> None:
    """Also where the largest value of a block is negative, a block is empty, or the gradient is of another order."""
    torch.manual_seed(0)
    one, other = (nn.Parameter(torch.ones(1000)) for _ in range(2))
    first, second = (AdamW8bit([{"params": [p]}], lr=1e-3, betas=(0.9, 0.999), eps=1e-8) for p in (one, other))
    for exponent in range(-8, 4):
        one.grad = torch.randn(1000) * 10.0**exponent
        one.grad[256:512] = 0
        one.grad[3] = -1e2 * 10.0**exponent
        other.grad = one.grad.clone()
        first.step()
        second.step()
        assert torch.equal(one, other)
        values = {moment.name: first.moment(one, moment, 0, 1000) for moment in MOMENTS}
        assert torch.equal(first.moment(one, MOMENTS[0], 200, 600), values["exp_avg"][200:800])
        second.set_moments(other, first.state[one]["step"], values)
        for moment in MOMENTS:
            assert torch.equal(second.moment(other, moment, 0, 1000), values[moment.name])
            scales = f"{moment.name}_scales"
            assert torch.equal(first.state[one][scales], second.state[other][scales])


def test_muon_is_torchs_with_updates_of_the_size_of_adamws() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(24, 8, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = OptimizerSettings(optimizer="muon", learning_rate=1e-2, weight_decay=0.1)
    one = optim.build(ours, settings)
    other = torch.optim.Muon(theirs.parameters(), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.weight.grad = torch.randn(8, 24)
        theirs.weight.grad = ours.weight.grad.clone()
        one.step()
        other.step()
        assert torch.allclose(ours.weight, theirs.weight, atol=1e-4)
    step = theirs.weight - ours.weight
    assert step.abs().max() < 1e-4 < (ours.weight.norm() / 100)
