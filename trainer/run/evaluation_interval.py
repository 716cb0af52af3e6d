"""After which steps the validation loss is measured. Owns the rule of `train.evaluate_every`, pure; the loop and the plan ask it."""

from __future__ import annotations

from trainer.run.settings.train import EvaluateEvery, OptimizerSettings


def evaluation_interval(settings: OptimizerSettings, steps_per_epoch: int) -> int | None:
    """Steps between two evaluations, at least 1; None for `never`. A share of an epoch is rounded to whole steps."""
    every = settings.evaluate_every
    if every == "never":
        return None
    if isinstance(every, EvaluateEvery):
        return max(1, round(every.epochs * steps_per_epoch))
    return max(1, steps_per_epoch) if every == "epoch" else every


def is_evaluation_due(settings: OptimizerSettings, step: int, steps_per_epoch: int, total_steps: int) -> bool:
    """Whether to evaluate after `step` (counted from 1): at the interval, and after the last step, unless `never`."""
    interval = evaluation_interval(settings, steps_per_epoch)
    return interval is not None and (step % interval == 0 or step == total_steps)
