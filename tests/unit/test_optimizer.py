"""A schedule off by one step or a decayed norm changes every run a little, and nobody notices."""

import itertools
import math

import pytest
import torch
from torch import nn

from trainer.engine import optimizer as optim
from trainer.run.settings.train import OptimizerSettings


def rates(total: int, **settings: object) -> list[float]:
    spec = OptimizerSettings.model_validate({"learning_rate": 1.0, **settings})
    return [optim.learning_rate(spec, step, total) for step in range(total)]


def test_the_reference_schedule_peaks_after_its_warm_up_and_ends_near_zero():
    curve = rates(3420, warmup_steps=100)
    assert curve[0] == 0.01
    assert curve[99] == 1.0
    assert max(curve) == 1.0
    assert curve[100] == 1.0
    assert curve[1760] == pytest.approx(0.5 * (1 + math.cos(math.pi * 1660 / 3320)))
    assert 0 < curve[-1] < 1e-6
    assert all(a >= b for a, b in itertools.pairwise(curve[100:]))


def test_linear_and_constant_and_a_floor():
    assert rates(10, schedule="linear")[5] == 0.5
    assert set(rates(10, schedule="constant")) == {1.0}
    assert rates(10, schedule="linear", min_lr_ratio=0.1)[9] == pytest.approx(0.1 + 0.9 * 0.1)


def test_warm_up_as_a_ratio_is_rounded_up():
    assert optim.warmup_steps(OptimizerSettings(warmup_ratio=0.03), 101) == 4


def test_vectors_are_not_decayed():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = optim.build(model, OptimizerSettings(weight_decay=0.1))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert [p.dim() for p in decayed["params"]] == [2]
    assert plain["weight_decay"] == 0.0
    assert [p.dim() for p in plain["params"]] == [1, 1, 1]


def test_frozen_parameters_are_not_handed_to_the_optimizer():
    model = nn.Linear(4, 4)
    model.weight.requires_grad_(False)
    optimizer = optim.build(model, OptimizerSettings())
    assert [p is model.bias for group in optimizer.param_groups for p in group["params"]] == [True]
    assert isinstance(optimizer, torch.optim.AdamW)
