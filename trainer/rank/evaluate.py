"""What a validation set measures: token-weighted means over all ranks, the same numbers on each. Owns nothing between calls."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from trainer.data.batch import Share
from trainer.data.plan import DataPlan
from trainer.engine.engine import Engine, sum_over_ranks
from trainer.rank.ahead import Ahead
from trainer.run.exits import TrainingFailed
from trainer.run.measures import FIRST

LARGEST_EXPONENT = 700.0
"""exp of more is no float any more."""


def perplexity(loss: float) -> float:
    """exp of a mean cross-entropy in nats."""
    return math.exp(min(loss, LARGEST_EXPONENT))


def measure(
    engine: Engine, plan: DataPlan, share: Share, alive: Callable[[], None], *, by_name: bool
) -> dict[str, float]:
    """Every measure of every validation set, by its name in metrics.jsonl (`trainer.run.measures`); those of the first set as
    eval_loss and so on, those of all as NAME/loss and so on where sets have names (`by_name`). All ranks call it; `alive` is
    called after every batch. Raises TrainingFailed where a loss is not finite."""
    found: dict[str, float] = {}
    for number, name in enumerate(plan.validation_names):
        values = measure_set(engine, plan, share, name, alive)
        if number == 0:
            found |= {f"{FIRST}{key}": value for key, value in values.items()}
        if by_name:
            found |= {f"{name}/{key}": value for key, value in values.items()}
    return found


def measure_set(engine: Engine, plan: DataPlan, share: Share, name: str, alive: Callable[[], None]) -> dict[str, float]:
    """loss: sum of weight x cross-entropy over the set's conversations by the sum of weights; perplexity: its exponential;
    token_accuracy: share of the tokens with a weight that are the likeliest; entropy: mean over those tokens of the entropy of
    the prediction, in nats."""
    loss = torch.zeros((), dtype=torch.float64, device=engine.device)
    weight = torch.zeros((), dtype=torch.float64, device=engine.device)
    engine.tally.take()
    places = range(plan.eval_num_micro_batches(share, name))
    for batch in Ahead(places, lambda index: plan.eval_batch(share, name, index), engine.device):
        loss += engine.evaluate(batch).double()
        weight += batch.weights_BT.sum(dtype=torch.float64).to(engine.device)
        alive()
    counts = engine.tally.take()
    total_loss, total_weight, labels, correct, entropy = sum_over_ranks(
        loss, weight, counts.labels, counts.correct, counts.entropy, device=engine.device
    )
    mean = total_loss / total_weight if total_weight else math.nan
    if not math.isfinite(mean):
        raise TrainingFailed(f"the validation loss of {name} is {mean}: the weights or the held-out data are broken")
    return {
        "loss": mean,
        "perplexity": perplexity(mean),
        "token_accuracy": correct / max(1.0, labels),
        "entropy": entropy / max(1.0, labels),
    }
