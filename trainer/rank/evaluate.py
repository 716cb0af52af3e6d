"""Validation loss: the token-weighted mean over all ranks, the same number on each. Owns nothing between calls."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from trainer.data.batch import Share
from trainer.data.plan import DataPlan
from trainer.engine.engine import Engine, sum_over_ranks
from trainer.rank.ahead import Ahead
from trainer.run.exits import TrainingFailed


def validation_loss(engine: Engine, plan: DataPlan, share: Share, alive: Callable[[], None]) -> float:
    """Sum of weight x cross-entropy over the held-out conversations, divided by the sum of weights. All ranks call it;
    `alive` is called after every batch.

    Raises TrainingFailed where the result is not finite.
    """
    loss = torch.zeros((), dtype=torch.float64, device=engine.device)
    weight = torch.zeros((), dtype=torch.float64, device=engine.device)
    places = range(plan.eval_num_micro_batches(share))
    for batch in Ahead(places, lambda index: plan.eval_batch(share, index), engine.device):
        loss += engine.evaluate(batch).double()
        weight += batch.weights_BT.sum(dtype=torch.float64).to(engine.device)
        alive()
    total_loss, total_weight = sum_over_ranks(loss, weight, device=engine.device)
    mean = total_loss / total_weight if total_weight else math.nan
    if not math.isfinite(mean):
        raise TrainingFailed(f"the validation loss is {mean}: the weights or the held-out data are broken")
    return mean
