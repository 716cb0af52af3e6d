"""What an evaluation measures, by its name in metrics.jsonl, and which way is better. Pure: a laptop asks it too.

Owns the names. `eval_loss` and its kin are the first validation set's; where sets have names, each has NAME/loss and its kin.
"""

from __future__ import annotations

from typing import Literal

from trainer.run.settings.checkpoint import BestMetric
from trainer.run.settings.train import StopSpec
from trainer.run.spec import TrainSpec

Direction = Literal["lower", "higher"]
OF_A_SET: dict[str, Direction] = {
    "loss": "lower",
    "perplexity": "lower",
    "token_accuracy": "higher",
    "entropy": "lower",
}
"""Measured of every validation set."""
FIRST = "eval_"
"""Prefix of those of the first set."""
SCORES = ("exact_match", "contains", "json_valid", "tool_call_match")
"""Scores of answers that dolphin knows; any other is a function of the user's."""
COLUMNS = ("step", "epoch", "loss", "time", "attempt")
"""Of metrics.jsonl, by which its lines are told apart: no score may be called so."""


def score_name(metric: str) -> str:
    """`polite` of `scores.py:polite`; a score of dolphin's own is its name."""
    return metric.rpartition(":")[2]


def function_of(metric: str) -> tuple[str, str] | None:
    """(file, function) of `file.py:function`; None for a score of dolphin's own, or another form."""
    file, colon, function = metric.rpartition(":")
    return (file, function) if colon and file.endswith(".py") and function.isidentifier() else None


def directions(spec: TrainSpec) -> dict[str, Direction]:
    """Every name that an evaluation of this job records -> which way is better."""
    found: dict[str, Direction] = {}
    if spec.data.holds_out:
        found |= {f"{FIRST}{name}": direction for name, direction in OF_A_SET.items()}
    for entry in spec.data.validation or ():
        found |= {f"{entry.name}/{name}": direction for name, direction in OF_A_SET.items()}
    return found | {score_name(metric): "higher" for metric in spec.evaluate.metrics}


def stated_best(spec: TrainSpec) -> BestMetric | None:
    """`checkpoint.keep_best` in its long form."""
    stated = spec.checkpoint.keep_best
    return BestMetric(metric=stated) if isinstance(stated, str) else stated


def direction_of(spec: TrainSpec, stated: BestMetric | StopSpec) -> Direction:
    """As stated, else as known. A name that is not measured is a contradiction that was told before."""
    return stated.direction or directions(spec)[stated.metric]
