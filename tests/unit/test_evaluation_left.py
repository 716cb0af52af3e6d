"""A reclaim's notice of thirty seconds that comes in an evaluation of five minutes: the save comes first, the evaluation is made up for."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.checkpoint.trainer_state import TrainerState
from trainer.data.batch import Share
from trainer.rank import loop
from trainer.rank.loop import Training
from trainer.run.exits import Preempted
from trainer.run.spec import TrainSpec

SPEC = TrainSpec.model_validate({
    "name": "t", "model": {"base": "owner/base"}, "data": {"sources": [{"path": "/rows.jsonl"}]},
    "train": {"evaluate_every": 2, "max_steps": 6}, "checkpoint": {"keep_best": "eval_loss"},
})  # fmt: skip


class Run:
    """A run of six steps without a model; a stop comes in the evaluation of step `stop_in`, before its second batch."""

    def __init__(self, state: TrainerState, monkeypatch: pytest.MonkeyPatch, stop_in: int | None = None) -> None:
        self.told: list[str] = []
        self.saved: list[dict[str, Any]] = []
        stop = SimpleNamespace(requested=None, save_requested=False)
        busy = contextlib.nullcontext()
        heartbeat = SimpleNamespace(alive=lambda: None, step=lambda _: None, busy=lambda _: busy)

        def measure(_engine: Any, _plan: Any, _share: Any, get_on: Any, *, by_name: bool) -> dict[str, float]:
            for batch in range(3):
                if batch == 1 and state.step == stop_in:
                    stop.requested = SimpleNamespace(reason="spot notice", limit=None)
                get_on()
            self.told.append(f"evaluated {state.step}")
            return {"eval_loss": 9.0 - state.step}

        monkeypatch.setattr(loop, "sum_over_ranks", lambda *values, device: [float(value) for value in values])
        monkeypatch.setattr(loop.evaluate, "measure", measure)
        plan: Any = SimpleNamespace(
            total_steps=6,
            steps_per_epoch=6,
            has_validation=True,
            epoch_of=lambda step: step / 6,
            validation_names=("held-out",),
        )
        checkpoints: Any = SimpleNamespace(
            check=lambda: None, local_due=lambda _: False, finish=lambda: None,
            save=lambda state, wait=False: self.saved.append(state.state_dict()),
        )  # fmt: skip
        answering: Any = SimpleNamespace(questions=[], ask=lambda *_: ([], {}))
        stands_for: Any = SimpleNamespace(device=None)
        self.training = Training(
            SimpleNamespace(spec=SPEC), plan, stands_for, checkpoints, state,  # type: ignore[arg-type]
            SimpleNamespace(heartbeat=heartbeat, stop=stop), Share(0, 1, 1), answering, None, None,  # type: ignore[arg-type]
        )  # fmt: skip

        def step() -> None:
            state.step += 1
            self.told.append(f"step {state.step}")

        self.training.step = step  # type: ignore[method-assign]


def test_a_stop_in_an_evaluation_saves_at_once_and_the_evaluation_comes_first_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Run(TrainerState(), monkeypatch, stop_in=4)
    with pytest.raises(Preempted, match="stopped at step 4 of 6"):
        first.training.run()
    assert first.told == ["evaluated 0", "step 1", "step 2", "evaluated 2", "step 3", "step 4"]
    left = first.saved[-1]
    assert (left["step"], left["evaluated_step"], left["best"].step) == (4, 2, 2)
    again = Run(TrainerState.from_state_dict(left), monkeypatch)
    again.training.run()
    assert again.told == ["evaluated 4", "step 5", "step 6", "evaluated 6"]
    assert again.saved[-1]["best"].step == 6


def test_what_was_evaluated_is_not_evaluated_again_and_the_last_evaluation_is_never_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for state in (TrainerState(step=4, evaluated_step=4), TrainerState.from_state_dict({"step": 4})):
        goes_on = Run(state, monkeypatch, stop_in=6)
        goes_on.training.run()
        assert goes_on.told == ["step 5", "step 6", "evaluated 6"]
