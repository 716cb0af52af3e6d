"""Metrics of a run, on rank 0: metrics.jsonl always, a line for a person, and the trackers that were asked for.

Owns what is recorded at a step and at an evaluation, and when a line of it is printed. Floats are written so that they read back
bit for bit. A tracker never holds training up and never ends it: each has a thread and a queue of its own.
"""

from __future__ import annotations

import atexit
import queue
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.engine import threads
from trainer.rank.evaluate import perplexity
from trainer.rank.gauges import Gauges, StepCost
from trainer.rank.trackers import JsonlTracker, Tracker, requested_trackers
from trainer.run.log_lines import evaluation_line, sample_line, step_line
from trainer.run.run_folder import RunDir, append_line, end_torn_line
from trainer.run.spec import NodeJob

QUEUE_LENGTH = 10_000
DRAIN_TIMEOUT_S = 20.0
NUM_SHOWN = 3
"""Answers that the log shows of each evaluation; samples.jsonl has all."""
PACE_STEPS = 50
"""Steps that the estimate of the time left looks back on."""


class MetricsWriter:
    """What rank 0 tells of the training. Raises BadInput where a tracker that was asked for is not installed."""

    def __init__(self, job: NodeJob, attempt: int, gauges: Gauges, *, total_steps: int) -> None:
        self._attempt, self._total_steps, self._gauges = attempt, total_steps, gauges
        self._log_every = job.spec.train.log_every
        self._pace: deque[float] = deque(maxlen=PACE_STEPS + 1)
        self._run = RunDir(job.run_dir)
        end_torn_line(self._run.samples)
        self._jsonl = JsonlTracker(self._run.metrics)
        self._jsonl.start(job)
        self._trackers = [Background(tracker, job) for tracker in requested_trackers(job)]
        self._closed = False
        atexit.register(self.close, "stopped")  # a rank that leaves by an error still closes its trackers

    def step(
        self, *, step: int, epoch: float, loss: float, accuracy: float, lr: float, grad_norm: float, cost: StepCost
    ) -> None:
        """Step `step` is applied. `accuracy` is the share of its labels that were the likeliest token, `grad_norm` the one before
        clipping.

        Many parameters: each is a column.
        """
        gauges = self._gauges.read(cost)
        values = {
            "epoch": float(epoch),
            "loss": float(loss),
            "perplexity": perplexity(float(loss)),
            "token_accuracy": float(accuracy),
            "lr": float(lr),
            "grad_norm": float(grad_norm),
            "tokens": int(cost.tokens),
            "seconds": float(cost.seconds),
            **gauges,
            "attempt": self._attempt,
        }
        self._record(step, values)
        now = time.monotonic()
        if not self._pace:
            self._pace.append(now - cost.seconds)
        self._pace.append(now)
        if step % self._log_every == 0 or step == self._total_steps:
            speed = gauges["tokens_per_second"]
            print(step_line(step, self._total_steps, loss, lr, grad_norm, speed, self.pace_s), flush=True)

    @property
    def pace_s(self) -> float:
        """Seconds of a step, evaluations and saves counted in, over the last of them; 0 before the first."""
        return (self._pace[-1] - self._pace[0]) / max(1, len(self._pace) - 1) if self._pace else 0.0

    def evaluation(
        self,
        *,
        step: int,
        epoch: float,
        measures: Mapping[str, float],
        is_best: bool,
        samples: Sequence[dict[str, Any]],
    ) -> None:
        """What was measured after `step` steps, and what the model answered (SAMPLE_FIELDS)."""
        for sample in samples:
            append_line(self._run.samples, sample)
        self._record(step, {"epoch": float(epoch), **measures})
        print(evaluation_line(step, self._total_steps, epoch, measures, is_best=is_best), flush=True)
        for sample in samples[:NUM_SHOWN]:
            print(sample_line(sample["question"], sample["answer"]), flush=True)

    def close(self, outcome: str = "done") -> None:
        """End the trackers, waiting a little for what they still have to send. `outcome`: done or stopped."""
        if self._closed:
            return
        self._closed = True
        self._jsonl.end(outcome)
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        for tracker in self._trackers:
            tracker.finish(outcome)
        for tracker in self._trackers:
            tracker.wait(deadline)

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        self._jsonl.log(step, values)
        for tracker in self._trackers:
            tracker.log(step, values)


class Background:
    """A tracker behind a queue. Its first error is said, and it is left alone from then on."""

    def __init__(self, tracker: Tracker, job: NodeJob) -> None:
        self._tracker = tracker
        self._queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(QUEUE_LENGTH)
        self._dropped, self._failed = 0, False
        self._outcome = "stopped"
        try:
            tracker.start(job)
        except Exception as error:  # whatever a tracker raises, training goes on
            self._give_up(error)
        self._thread = threads.start(self._work, f"track-{tracker.name}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Never blocks; a tracker that is 10,000 records behind loses the newest."""
        if self._failed:
            return
        try:
            self._queue.put_nowait((step, dict(values)))
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                print(f"warning: {self._tracker.name} does not keep up; it loses records (metrics.jsonl has all)")

    def finish(self, outcome: str) -> None:
        """No more records come; does not wait."""
        self._outcome = outcome
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self._failed = True  # 10,000 records behind: it will not catch up now

    def wait(self, deadline: float) -> None:
        """Until everything is sent, or until `deadline` on the monotonic clock."""
        self._thread.join(timeout=max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            print(f"warning: {self._tracker.name} did not take all records in time (metrics.jsonl has all)", flush=True)

    def _work(self) -> None:
        try:
            while (record := self._queue.get()) is not None:
                if not self._failed:
                    self._tracker.log(*record)
            if not self._failed:
                self._tracker.end(self._outcome)
        except Exception as error:  # whatever a tracker raises, training goes on
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        text = " ".join(str(error).split())[:300]
        print(
            f"warning: {self._tracker.name} failed and gets no more records ({type(error).__name__}: {text}); training "
            "goes on, metrics.jsonl has all",
            flush=True,
        )
