"""The training loop: every line a noun to open. Owns the order of things in a step; everything that persists is elsewhere.

All ranks run it alike. What they must decide together (is the loss finite, was a stop or a save asked for) is agreed by
small all-reduces at the step's boundary; no collective runs during a save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist

from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.trainer_state import TrainerState
from trainer.data.batch import Batch, Share
from trainer.data.plan import DataPlan
from trainer.engine import optimizer
from trainer.engine.engine import Engine, sum_over_ranks
from trainer.rank import best, evaluate
from trainer.rank.ahead import Ahead
from trainer.rank.answering import Answering
from trainer.rank.gauges import StepCost
from trainer.rank.metrics import MetricsWriter
from trainer.run import evaluation_interval
from trainer.run.exits import EndKind, Preempted, TrainingFailed
from trainer.run.run_folder import EventKind
from trainer.run.spec import NodeJob
from trainer.supervise.rank_guard import Rank


class EvaluationLeft(Exception):
    """Raised on all ranks alike."""


@dataclass
class Training:
    """Everything a rank has in hand while it trains."""

    job: NodeJob
    plan: DataPlan
    engine: Engine
    checkpoints: CheckpointManager
    state: TrainerState
    hand: Rank
    share: Share
    answering: Answering
    metrics: MetricsWriter | None
    """On rank 0 only."""
    emit: Callable[..., None] | None
    """On rank 0 only: emit(EventKind, **fields)."""
    limit: EndKind | None = None
    """The job's limit that ended the training before its last step: what there is is exported. The same on all ranks."""

    def run(self) -> None:
        """Train from `state.step` to the end of the plan, and leave the final step committed.

        Raises Preempted once a requested stop is committed, TrainingFailed where going on would waste money.
        """
        self.hand.heartbeat.step(self.state.step)
        if self.state.step == 0 and self.job.spec.train.evaluate_at_start:
            self.evaluate()
        if self.state.evaluated_step != self.state.step and self.is_evaluation_due():  # a stop left it
            self.save_or_stop(self.evaluate())
        while (
            self.state.step < self.plan.total_steps
            and self.limit is None
            and not best.is_over(self.state, self.job.spec)
        ):
            self.checkpoints.check()
            self.step()
            is_best = self.is_evaluation_due() and self.evaluate()
            self.save_or_stop(is_best)
        self.commit()
        self.say_if_early()

    def step(self) -> None:
        """One optimizer step over the global batch."""
        began, step = time.perf_counter(), self.state.step
        weight = self.plan.step_weight(step)
        losses = [self.one_micro_batch(next(self.batches), weight) for _ in range(self.num_micro_batches)]
        counts = self.engine.tally.take()
        loss_sum, labels, correct = sum_over_ranks(
            torch.stack(losses).sum(), counts.labels, counts.correct, device=self.engine.device
        )
        loss = loss_sum / weight if weight else 0.0
        if not math.isfinite(loss):
            raise TrainingFailed(self.name_the_culprits(step, losses, loss))
        rate = optimizer.learning_rate(self.job.spec.train, step, self.plan.total_steps)
        norm = self.engine.apply(rate)
        self.state.step += 1
        self.state.tokens += self.plan.step_tokens(step)
        self.state.trained_tokens += self.plan.step_trained_tokens(step)
        self.hand.heartbeat.step(self.state.step)
        if self.metrics is not None:
            self.metrics.step(
                step=self.state.step,
                epoch=self.plan.epoch_of(self.state.step),
                loss=loss,
                accuracy=correct / max(1.0, labels),
                lr=rate,
                grad_norm=norm,
                cost=self.cost(step, time.perf_counter() - began),
            )

    def one_micro_batch(self, batch: Batch, weight: float) -> torch.Tensor:
        loss = self.engine.forward_backward(batch, weight)
        self.hand.heartbeat.alive()
        return loss

    def cost(self, step: int, seconds: float) -> StepCost:
        """Of the step that took so long; what was waited for is counted anew from here."""
        cost = StepCost(
            tokens=self.plan.step_tokens(step),
            trained_tokens=self.plan.step_trained_tokens(step),
            pairs=self.plan.step_pairs(step),
            seconds=seconds,
            data_wait_s=self.batches.waited_s,
            save_stall_s=self.checkpoints.stalled_s,
        )
        self.batches.waited_s = self.checkpoints.stalled_s = 0.0
        return cost

    @property
    def num_micro_batches(self) -> int:
        return self.plan.num_micro_batches(self.share)

    @cached_property
    def batches(self) -> Ahead:
        """This rank's micro batches from `state.step` on, to the end of the plan."""
        steps = range(self.state.step, self.plan.total_steps)
        places = ((step, index) for step in steps for index in range(self.num_micro_batches))
        return Ahead(places, lambda place: self.plan.batch(place[0], self.share, place[1]), self.engine.device)

    def is_evaluation_due(self) -> bool:
        settings, plan = self.job.spec.train, self.plan
        return evaluation_interval.is_evaluation_due(settings, self.state.step, plan.steps_per_epoch, plan.total_steps)

    def evaluate(self) -> bool:
        """Measure, ask and record; whether this is the best evaluation so far, by `checkpoint.keep_best`. One that is asked to
        stop meanwhile is left: the notice of a reclaim may be shorter."""
        if not self.plan.has_validation and not self.answering.questions:
            return False
        by_name = self.job.spec.data.validation is not None
        try:
            with self.hand.heartbeat.busy("evaluating"):
                measures = evaluate.measure(self.engine, self.plan, self.share, self.get_on, by_name=by_name)
                samples, scores = self.answering.ask(
                    self.engine, self.share, self.state.step, self.get_on, self.hand.heartbeat.alive
                )
        except EvaluationLeft:
            if self.emit is not None:
                print(f"the evaluation of step {self.state.step} is made up for when the run goes on", flush=True)
            return False
        self.state.evaluated_step = self.state.step
        measures |= scores
        is_best = best.take(self.state, self.job.spec, measures)
        step, epoch = self.state.step, self.plan.epoch_of(self.state.step)
        if self.metrics is not None:
            self.metrics.evaluation(step=step, epoch=epoch, measures=measures, is_best=is_best, samples=samples)
        if self.emit is not None:
            loss = measures.get("eval_loss")
            self.emit(EventKind.EVALUATED, step=step, epoch=epoch, eval_loss=loss, measures=measures, is_best=is_best)
        return is_best

    def get_on(self) -> None:
        """After a forward pass of an evaluation, on all ranks: beat, and leave the evaluation if any of them was asked to stop.
        Not before the first step nor after the last, where there is no other time for it."""
        self.hand.heartbeat.alive()
        if 0 < self.state.step < self.plan.total_steps:
            (asked,) = sum_over_ranks(self.hand.stop.requested is not None, device=self.engine.device)
            if asked:
                raise EvaluationLeft

    def say_if_early(self) -> None:
        """Of a run that `train.stop` ended: what was not trained."""
        steps_left, gain = self.plan.total_steps - self.state.step, self.state.gain
        if steps_left == 0 or gain is None or self.limit is not None or self.emit is None or self.metrics is None:
            return
        seconds_left = steps_left * self.metrics.pace_s
        print(
            f"stopped early at step {self.state.step} of {self.plan.total_steps}: {gain.metric} was {gain.value:.4f} at step "
            f"{gain.step} and no better in {self.state.num_without_gain} evaluations since",
            flush=True,
        )
        self.emit(
            EventKind.STOPPED_EARLY,
            step=self.state.step,
            metric=gain.metric,
            best=gain.value,
            best_step=gain.step,
            evaluations=self.state.num_without_gain,
            steps_left=steps_left,
            seconds_left=seconds_left,
        )

    def save_or_stop(self, is_best: bool) -> None:
        """At a step's boundary: what any rank was asked for, all of them do. The best so far is saved in any case."""
        stop = self.hand.stop.requested
        limit = stop.limit if stop is not None else None
        due = self.share.rank == 0 and self.checkpoints.local_due(self.state)
        asked_stop, asked_save, interval_due, by_budget, by_deadline = sum_over_ranks(
            stop is not None, self.hand.stop.save_requested, due,
            limit is EndKind.BUDGET_REACHED, limit is EndKind.DEADLINE_REACHED, device=self.engine.device,
        )  # fmt: skip
        if asked_stop:
            reason = stop.reason if stop is not None else "another rank was asked to stop"
            if self.emit is not None:
                self.emit(EventKind.STOP_REQUESTED, reason=reason, step=self.state.step)
            if self.state.step < self.plan.total_steps:
                self.commit()
                if by_budget + by_deadline == asked_stop:  # nobody else asks, who would not wait for an export
                    self.limit = EndKind.DEADLINE_REACHED if by_deadline else EndKind.BUDGET_REACHED
                    return
                raise Preempted(f"stopped at step {self.state.step} of {self.plan.total_steps}: {reason}")
        elif (asked_save or interval_due or is_best) and self.state.step < self.plan.total_steps:
            with self.hand.heartbeat.busy("saving"):
                self.checkpoints.save(self.state)
        if asked_save:
            dist.barrier()
            self.hand.stop.saved()

    def commit(self) -> None:
        """Save this step, if it is not saved yet, and wait until it is committed."""
        with self.hand.heartbeat.busy("saving"):
            self.checkpoints.save(self.state, wait=True)
            self.checkpoints.finish()

    def name_the_culprits(self, step: int, losses: list[torch.Tensor], loss: float) -> str:
        """The same sentence on every rank: which conversations were in the micro batches whose loss is not finite."""
        here: list[str] = []
        for index, value in enumerate(losses):
            if not torch.isfinite(value):
                here += self.plan.conversations(step, self.share, index)
        everywhere: list[list[str]] = [[] for _ in range(self.share.world_size)]
        dist.all_gather_object(everywhere, here)
        names = [name for part in everywhere for name in part]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return (
            f"the loss of step {step + 1} is {loss}, so it was not applied. Its conversations: {shown}. "
            "Look at them, or lower train.learning_rate."
        )
