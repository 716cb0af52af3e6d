"""metrics.jsonl is the record that plots, reports and the proof of a bit-identical resume rest on."""

from __future__ import annotations

import importlib.util
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.rank import metrics, trackers
from trainer.rank.gauges import Gauges, StepCost
from trainer.rank.metrics import Background, MetricsWriter
from trainer.run.exits import BadInput
from trainer.run.log_lines import step_line
from trainer.run.run_folder import RunDir
from trainer.run.settings.track import TrackSpec
from trainer.run.spec import NodeJob

STEP_KEYS = [
    "step", "epoch", "loss", "perplexity", "token_accuracy", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second", "trained_tokens_per_second",
    "data_wait_s", "save_stall_s", "attempt", "time",
]  # fmt: skip
CPU = torch.device("cpu")


COST = StepCost(tokens=1624, trained_tokens=600, pairs=40_000, seconds=2.0, data_wait_s=0.1, save_stall_s=0.4)


def writer_of(job: NodeJob, attempt: int, *, total_steps: int) -> MetricsWriter:
    return MetricsWriter(job, attempt, Gauges(job, CPU), total_steps=total_steps)


def node_job(run_dir: Path, **track: Any) -> NodeJob:
    return NodeJob.model_validate(
        {
            "run_id": "job-1", "run_dir": str(run_dir), "cache_dir": "/nowhere", "nproc": 1, "device": "cpu",
            "spec": {
                "name": "job", "model": {"base": "x"}, "data": {"sources": [{"path": "x"}]},
                "train": {"global_batch": 2, "log_every": 2}, "track": track,
            },
        }
    )  # fmt: skip


def write(writer: MetricsWriter, step: int, loss: float = 0.5, lr: float = 5e-6) -> None:
    writer.step(step=step, epoch=step / 4, loss=loss, accuracy=0.5, lr=lr, grad_norm=0.93, cost=COST)


def test_a_loss_reads_back_to_the_same_bits_with_exactly_the_promised_keys(tmp_path: Path) -> None:
    writer, losses = writer_of(node_job(tmp_path), 3, total_steps=50), [random.random() * 12 for _ in range(50)]
    for step, loss in enumerate(losses, 1):
        write(writer, step, loss, lr=loss * 1e-6)
    writer.evaluation(step=50, epoch=1.0, measures={"eval_loss": losses[0]}, is_best=False, samples=[])
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines[:-1]] == losses
    assert [line["lr"] for line in lines[:-1]] == [loss * 1e-6 for loss in losses]
    assert all(list(line) == STEP_KEYS for line in lines[:-1])
    times = [line["time"] for line in lines]
    assert sorted(times) == times
    assert lines[-1] == {"step": 50, "epoch": 1.0, "eval_loss": losses[0], "time": times[-1]}
    assert (lines[0]["tokens"], lines[0]["tokens_per_second"], lines[0]["attempt"]) == (1624, 812.0, 3)


def test_a_line_torn_by_a_kill_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.7}\n{"step": 2, "lo')
    writer = writer_of(node_job(tmp_path), 2, total_steps=9)
    write(writer, 2)
    writer.close()
    assert [line["step"] for line in RunDir(tmp_path).read_metrics()] == [1, 2]


def test_the_line_for_a_person() -> None:
    line = step_line(840, 3420, 0.58141, 4.1e-6, 0.931, 812.3, 11527 / 2580)
    assert line == "step 840/3420 · loss 0.5814 · lr 4.1e-06 · grad 0.93 · 812 tokens/s · 3:12:07 left"


def test_the_log_has_a_line_every_log_every_steps_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = writer_of(node_job(tmp_path), 1, total_steps=5)
    for step in range(1, 6):
        write(writer, step)
    writer.close()
    shown = [line.split(" ")[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["2/5", "4/5", "5/5"]


def test_a_missing_package_is_said_before_training_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"track\.tensorboard needs the package tensorboardX.*pip install tensorboardX"):
        trackers.require_packages(TrackSpec(tensorboard=True))
    trackers.require_packages(TrackSpec())


class Misbehaving:
    """A tracker whose service is down: at the start, or from the third record on."""

    name = "Misbehaving"

    def __init__(self, fails_at: str) -> None:
        self.fails_at, self.seen = fails_at, 0

    def start(self, job: NodeJob) -> None:
        if self.fails_at == "start":
            raise ConnectionError("503 Service Unavailable")

    def log(self, step: int, values: Any) -> None:
        self.seen += 1
        if self.fails_at == "log" and self.seen == 3:
            raise ConnectionError("503 Service Unavailable")

    def end(self, outcome: str) -> None:
        if self.fails_at == "end":
            raise ConnectionError("503 Service Unavailable")


@pytest.mark.parametrize("fails_at", ["start", "log", "end"])
def test_a_tracker_that_fails_is_said_once_and_never_ends_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails_at: str
) -> None:
    tracker = Misbehaving(fails_at)
    monkeypatch.setattr(metrics, "requested_trackers", lambda job: [tracker])
    writer = writer_of(node_job(tmp_path), 1, total_steps=6)
    for step in range(1, 7):
        write(writer, step)
    writer.close()
    out = capsys.readouterr().out
    assert out.count("warning: Misbehaving failed") == 1
    assert "503 Service Unavailable" in out
    assert len(RunDir(tmp_path).read_metrics()) == 6
    assert tracker.seen == {"start": 0, "log": 3, "end": 6}[fails_at]


def test_a_tracker_that_lags_does_not_hold_training_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()

    class Stuck(Misbehaving):
        def log(self, step: int, values: Any) -> None:
            released.wait()

    monkeypatch.setattr(metrics, "QUEUE_LENGTH", 3)
    background = Background(Stuck("never"), node_job(tmp_path))
    for step in range(10):
        background.log(step, {"loss": 0.5})
    background.finish("done")
    background.wait(time.monotonic() + 0.05)
    released.set()
    out = capsys.readouterr().out
    assert "does not keep up" in out
    assert "did not take all records" in out
