"""A step of twenty minutes, an evaluation of an hour, an upload of three: each says on its way that it gets on."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.checkpoint_folder import completer, snapshot, writer
from trainer.checkpoint import manager as manager_module
from trainer.checkpoint.manager import CheckpointManager
from trainer.data.batch import Share
from trainer.engine import threads
from trainer.model.tally import Tally
from trainer.rank import evaluate, loop
from trainer.rank.loop import Training
from trainer.run.settings.train import OptimizerSettings


class Beats:
    """A heartbeat that counts, and what was done when."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def alive(self) -> None:
        self.told.append("alive")

    def step(self, step: int) -> None:
        self.told.append(f"step {step}")


class Engine:
    device = torch.device("cpu")

    def __init__(self, beats: Beats) -> None:
        self._told = beats.told

    def forward_backward(self, _batch: Any, _weight: float) -> torch.Tensor:
        self._told.append("micro batch")
        return torch.tensor(1.0)

    def evaluate(self, _batch: Any) -> torch.Tensor:
        self._told.append("batch")
        return torch.tensor(2.0)

    @property
    def tally(self) -> Tally:
        return Tally()

    def apply(self, _rate: float) -> float:
        return 1.0


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, evaluate):
        monkeypatch.setattr(module, "sum_over_ranks", lambda *values, device: [float(value) for value in values])


def test_a_step_beats_after_every_micro_batch() -> None:
    beats = Beats()
    plan = SimpleNamespace(
        step_weight=lambda _: 3.0, num_micro_batches=lambda _: 3, batch=lambda *_: None, total_steps=9,
        step_tokens=lambda _: 1, step_trained_tokens=lambda _: 1,
    )  # fmt: skip
    state = SimpleNamespace(step=4, tokens=0, trained_tokens=0)
    job = SimpleNamespace(spec=SimpleNamespace(train=OptimizerSettings()))
    hand: Any = SimpleNamespace(heartbeat=beats)
    stand_ins: Any = (job, plan, Engine(beats), None, state)
    Training(*stand_ins, hand, Share(0, 1, 1), stand_ins[0], None, None).step()
    assert beats.told == ["micro batch", "alive"] * 3 + ["step 5"]


def test_an_evaluation_beats_after_every_batch() -> None:
    beats = Beats()
    batch = SimpleNamespace(weights_BT=torch.ones(1, 2))
    plan: Any = SimpleNamespace(eval_num_micro_batches=lambda *_: 2, eval_batch=lambda *_: batch)
    engine: Any = Engine(beats)
    assert evaluate.measure_set(engine, plan, Share(0, 1, 1), "held-out", beats.alive)["loss"] == 1.0
    assert beats.told == ["batch", "alive"] * 2


def test_a_wait_for_a_save_beats_when_a_file_is_written_and_not_while_none_is(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "PROGRESS_EVERY_S", 0.001)
    beats, waiting, goes_on = Beats(), threading.Event(), threading.Event()
    manager = CheckpointManager.__new__(CheckpointManager)
    manager._got_on, manager._failure = threading.Event(), None
    manager._agree = SimpleNamespace(wait_for_all=lambda: None)  # type: ignore[assignment]

    def alive() -> None:
        beats.alive()
        goes_on.set()

    def save() -> None:
        waiting.wait(10)
        writer(tmp_path, got_on=manager._got_on.set).save(3, "id", snapshot(3), completer(3, "id"))
        goes_on.wait(10)

    manager.alive = alive
    manager._thread = threads.start(save, "save")
    assert beats.told == [], "nothing is written yet"
    waiting.set()
    manager.finish()
    assert beats.told == ["alive"]
