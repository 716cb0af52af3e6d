"""A plan that counts other bytes than training holds, or a checkpoint without one of the tensors, is found out when it is dear."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from launcher.models.architecture import TrainedModel, find_architecture
from launcher.plan.gpu_memory import Workload, moments_of
from launcher.plan.host_memory import host_memory, offloaded
from launcher.plan.throughput import offload_cost
from tests.support.checkpoint_folder import SETTINGS, completer, snapshot, writer
from trainer.checkpoint.manifest import MANIFEST, CorruptCheckpoint, Manifest
from trainer.checkpoint.shards import ShardReader
from trainer.engine import optimizer as optim
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
    model = nn.Linear(4, 4)
    optimizer = optim.build(model, OptimizerSettings(optimizer=name))
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    kept = {key: value for key, value in optimizer.state[model.weight].items() if key != "step"}
    described = OPTIMIZER_STATES[name]
    assert {key: str(value.dtype) for key, value in kept.items()} == {
        moment.name: f"torch.{moment.dtype}" for moment in described.moments
    }
    whole = model.weight.nbytes + sum(value.nbytes for value in kept.values())
    assert described.held_bytes == whole / model.weight.numel()


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
    with pytest.raises(CorruptCheckpoint, match="of the optimizer tomorrow, this program knows adamw"):
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
    copies = [host_memory(model, load, 3)["copies for saves"] for load in (adam, half)]
    assert copies == [12 * 8 * share, 8 * 8 * share]
    assert offloaded(model, half, 3)["optimizer"] == 2 * share
    costs = [
        offload_cost(stage=1, ranks=8, trained=800, micro_batches=1, bytes_per_element=2, **more).update_bytes
        for more in ({}, {"optimizer": HALF})
    ]
    assert costs == [100 * (40 + 2), 100 * (28 + 2)]
