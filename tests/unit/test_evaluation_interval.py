"""A validation curve that misses its points, or a run that spends its hours evaluating: when the validation loss is measured."""

from __future__ import annotations

import pytest

from trainer.run.evaluation_interval import is_evaluation_due
from trainer.run.settings.train import OptimizerSettings


@pytest.mark.parametrize(
    ("every", "steps_per_epoch", "total", "due"),
    [
        ("epoch", 4, 10, [4, 8, 10]),
        ("never", 4, 10, []),
        (3, 4, 10, [3, 6, 9, 10]),
        ({"epochs": 0.25}, 8, 9, [2, 4, 6, 8, 9]),
        ({"epochs": 0.25}, 10, 10, [2, 4, 6, 8, 10]),
        ({"epochs": 0.01}, 4, 4, [1, 2, 3, 4]),
        ({"epochs": 2}, 3, 10, [6, 10]),
    ],
)
def test_the_loss_is_measured_at_the_interval_and_after_the_last_step(
    every: object, steps_per_epoch: int, total: int, due: list[int]
) -> None:
    settings = OptimizerSettings.model_validate({"evaluate_every": every})
    measured = [step for step in range(1, total + 1) if is_evaluation_due(settings, step, steps_per_epoch, total)]
    assert measured == due
