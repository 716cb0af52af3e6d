"""Which evaluation was the best so far, and for how many of them nothing got better: `checkpoint.keep_best` and `train.stop`.

Owns the rule, pure. What it remembers is in TrainerState, so that a resumed run has the same best and stops at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainer.checkpoint.trainer_state import Best, TrainerState
from trainer.run.measures import Direction, direction_of, stated_best
from trainer.run.spec import TrainSpec


def is_better(value: float, than: float, direction: Direction, min_delta: float = 0.0) -> bool:
    """Whether `value` is better by more than `min_delta`."""
    gain = than - value if direction == "lower" else value - than
    return gain > min_delta


def take(state: TrainerState, spec: TrainSpec, values: Mapping[str, float]) -> bool:
    """Take in what an evaluation after `state.step` steps measured; whether it is the best by `checkpoint.keep_best`.

    The one before the first step counts for neither: nothing is trained there. A measure that is missing or not finite (of a
    function that failed) changes nothing."""
    if state.step == 0:
        return False
    stop = spec.train.stop
    if stop is not None:
        value, known = values.get(stop.metric), state.gain if state.gain and state.gain.metric == stop.metric else None
        if value is not None and math.isfinite(value):
            if known is None or is_better(value, known.value, direction_of(spec, stop), stop.min_delta):
                state.gain, state.num_without_gain = Best(stop.metric, value, state.step), 0
            else:
                state.num_without_gain += 1
    stated = stated_best(spec)
    if stated is None:
        return False
    value, known = values.get(stated.metric), state.best if state.best and state.best.metric == stated.metric else None
    if value is None or not math.isfinite(value):
        return False
    if known is not None and not is_better(value, known.value, direction_of(spec, stated)):
        return False
    state.best = Best(stated.metric, value, state.step)
    return True


def is_over(state: TrainerState, spec: TrainSpec) -> bool:
    """Whether `train.stop` ends the run here."""
    stop = spec.train.stop
    if stop is None or state.gain is None or state.gain.metric != stop.metric:
        return False
    return state.num_without_gain >= stop.patience
