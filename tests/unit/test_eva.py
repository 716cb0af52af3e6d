"""EVA's beginning: peft's own directions for the same rows, shared inputs asked once, and a layer that saw too little left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import EvaConfig
from peft.tuners.lora.eva import get_eva_state_dict
from transformers import AutoModelForCausalLM

from tests.support import tiny_job
from trainer.data.batch import IGNORE, Batch
from trainer.engine import eva
from trainer.model import adapter as adapters
from trainer.model.packed import PackedModel, Way
from trainer.run.settings.adapter import AdapterSpec

RANK, LENGTH = 4, 48


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.write_model(tmp_path_factory.mktemp("eva") / "base")


def batch(seed: int, labelled: int = LENGTH) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 300, (1, LENGTH), generator=generator)
    labels = torch.full_like(ids, IGNORE)
    labels[:, :labelled] = ids[:, :labelled]
    weights = (labels != IGNORE).float()
    return Batch.of(ids, labels, weights, torch.arange(LENGTH)[None], torch.tensor([0, LENGTH], dtype=torch.int32))


def found(model: Any, batches: list[Batch]) -> tuple[dict[str, torch.Tensor], int]:
    packed = PackedModel(model, 64, way=Way("sdpa", boundaries=False)).eval()

    @torch.no_grad()
    def forward(one: Batch) -> None:
        packed(one.ids_BT, one.labels_BT, one.weights_BT, one.positions_BT, one.cu_seqlens, one.max_seqlen)

    return eva.directions(model, batches, forward)


def test_the_directions_are_pefts_own(base: Path) -> None:
    batches = [batch(seed % 3) for seed in range(60)]  # the same rows again: they settle
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapters.inject(model, AdapterSpec(type="lora", rank=RANK, init="eva"), (), seed=1)
    ours, count = found(model, batches)
    assert len(ours) == 14
    assert 1 < count < len(batches), "layers that have settled are asked no more"

    config = LoraConfig(
        r=RANK,
        target_modules="all-linear",
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0),
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    data = [{"input_ids": one.ids_BT, "labels": one.labels_BT} for one in batches[:3]]
    expected = get_eva_state_dict(theirs, data, show_progress_bar=False)
    for name, tensor in expected.items():
        own = ours[f"{name.removeprefix('base_model.model.')}.lora_A.default.weight"]
        assert torch.allclose(own @ own.T, torch.eye(RANK), atol=1e-4)
        assert torch.allclose(own, tensor.float(), atol=1e-3), name


@pytest.mark.parametrize(("num_batches", "layers"), [(1, 0), (2, 14)])
def test_a_layer_that_saw_too_little_is_left_as_it_was(base: Path, num_batches: int, layers: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapters.inject(model, AdapterSpec(type="lora", rank=RANK, init="eva"), (), seed=1)
    few = [batch(number, labelled=RANK) for number in range(num_batches)]  # rows of several batches count together
    assert len(found(model, few)[0]) == layers


def test_a_rank_above_a_layers_features_leaves_that_layer_out(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapters.inject(model, AdapterSpec(type="lora", rank=40, init="eva"), (), seed=1)  # hidden 32, its MLP's 64
    names = found(model, [batch(n) for n in range(3)])[0]
    assert names
    assert all("down_proj" in name for name in names)
