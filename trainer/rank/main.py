"""One rank, from train.json to the model folder, read from top to bottom. Started by torchrun under `trainer.supervise`.

Imports torch only inside, so that signals are handled from the first moment.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trainer.run.exits import ExitCode, LimitReached, leave
from trainer.run.run_folder import EventKind, Phase, RunDir
from trainer.run.spec import NodeJob
from trainer.supervise.rank_guard import Rank, rank_guard


def main() -> None:
    parser = argparse.ArgumentParser(prog="trainer.rank.main", description=__doc__)
    parser.add_argument("train_json")
    parser.add_argument("--attempt", type=int, default=1)
    options = parser.parse_args()
    job = NodeJob.read(options.train_json)
    with rank_guard(job.run_dir, options.attempt, int(os.environ.get("RANK", "0"))) as hand:
        work(job, options.attempt, hand)
    leave(ExitCode.DONE)


def work(job: NodeJob, attempt: int, hand: Rank) -> None:
    """All of a rank's work. Raises the errors that `rank_guard` turns into an exit code."""
    import_libraries()
    import torch
    import torch.distributed as dist
    from transformers.utils import logging as transformers_logging

    from trainer.checkpoint.manager import CheckpointManager, probe_store
    from trainer.checkpoint.resume import Course
    from trainer.checkpoint.trainer_state import TrainerState
    from trainer.data.batch import Share
    from trainer.data.plan import DataPlan
    from trainer.data.tokenizer import load_tokenizer
    from trainer.engine import determinism, eva, out_of_memory
    from trainer.engine.engine import Engine, initialize_distributed
    from trainer.export import adapter_folder, card, hub, model_folder, weights
    from trainer.export.telling import guarded
    from trainer.model import adapter as adapters
    from trainer.model import build, freeze
    from trainer.rank.answering import Answering
    from trainer.rank.gauges import Gauges
    from trainer.rank.loop import Training
    from trainer.rank.metrics import MetricsWriter

    transformers_logging.disable_progress_bar()
    if job.spec.train.deterministic:
        determinism.ask()
    run = RunDir(job.run_dir)
    is_first = int(os.environ.get("RANK", "0")) == 0
    emit = partial(run.emit, attempt=attempt) if is_first else None

    def enter(phase: Phase) -> None:
        hand.heartbeat.enter(phase.value)
        if emit is not None:
            emit(EventKind.PHASE, phase=phase.value)
            print(f"{phase.value} ...", flush=True)

    enter(Phase.LOADING_MODEL)
    if is_first:
        probe_store(job, is_first=attempt == 1)
        if job.spec.push is not None:  # a token that may not write is told now, not after days of training
            hub.open_repo(job.spec.push.repo, job.spec.push.private)
    with out_of_memory.explained(job, lambda: 0):
        rank, world_size, device = initialize_distributed(job.device, hand.give_up)
    hand.heartbeat.alive()
    share = Share(rank, world_size, job.spec.train.micro_batch)
    plan = DataPlan.open(job)
    tokenizer = load_tokenizer(job.spec.model)
    base = build.build(job, tokenizer, hand.heartbeat.alive)
    adapter = adapters.of_job(base, job, tokenizer)
    report = freeze.apply(base, resolved_patterns(job)) if adapter is None else adapters.report(base, adapter)
    if emit is not None:
        print(f"{report}; {plan.total_steps} steps of {job.global_batch} x {job.spec.data.sequence_length} tokens")
        emit(
            EventKind.PLAN,
            total_steps=plan.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            sequences=plan.num_sequences,
            conversations=plan.num_conversations,
            tokens=plan.tokens_per_epoch,
            trained_tokens=plan.trained_tokens_per_epoch,
            parameters=report.num_parameters,
            trained_parameters=report.num_trainable,
        )
    with out_of_memory.explained(job, lambda: 0):
        engine = Engine(job, base, plan.num_micro_batches(share), device)
        torch.manual_seed(job.spec.train.seed + rank)
        hand.heartbeat.alive()

        enter(Phase.RESTORING)
        checkpoints = CheckpointManager(
            job,
            engine.deepspeed,
            Course(plan.key, plan.total_steps, plan.steps_per_epoch, model_folder.base_key(job) if is_first else ""),
            share=share,
            attempt=attempt,
            emit=emit,
        )
        checkpoints.alive = hand.heartbeat.alive
        resumed = checkpoints.resume()
        if resumed is None and adapter is not None and adapter.spec.init == "eva":
            line = eva.initialise(engine, plan, hand.heartbeat.alive)
            build.say(line)
        state = resumed or TrainerState()
    state.attempt = attempt

    answering = Answering(job, tokenizer, plan)

    enter(Phase.TRAINING)
    metrics = MetricsWriter(job, attempt, Gauges(job, device), total_steps=plan.total_steps) if is_first else None
    with out_of_memory.explained(job, lambda: state.step), determinism.explained():
        training = Training(job, plan, engine, checkpoints, state, hand, share, answering, metrics, emit)
        training.run()

    enter(Phase.EXPORTING)
    with hand.heartbeat.busy("exporting"):
        step = weights_to_export(job, state, checkpoints)
        made = card.Made(report, world_size, build.kernel_of(job, engine.model), step, state.step, training.limit)
        describe = card.Description(job, tokenizer, plan, made)
        end_tokens = plan.data.meta["end_tokens"]
        tensors: Iterator[Any] = iter(())
        reference = reference_of(job, engine)
        if adapter is None:
            dtype_of = weights.dtype_chooser(engine.model, model_folder.base_tensors(job))
            tensors = engine.gathered(dtype_of, hand.heartbeat.alive)
            write = partial(model_folder.write, job, engine.model, tokenizer, tensors)
        else:
            trained = engine.gathered_trainable()
            write = partial(adapter_folder.write, job, engine.model, adapter, tokenizer, trained)
        if is_first:
            folder = write(end_tokens, describe, reference)
            answer = model_folder.sample_of(folder, run)
            guarded("the model card", partial(describe.keep, folder, answer))
            run.emit(EventKind.EXPORTED, attempt=attempt, model=str(folder), step=step, sample=answer)
        for _ in tensors:  # the other ranks hold their parts out; rank 0 has taken all
            pass
        checkpoints.wait_for_all()
    if metrics is not None:
        metrics.close("done" if training.limit is None else "stopped")
    dist.destroy_process_group()
    sys.stdout.flush()
    if training.limit is not None:
        raise LimitReached(training.limit, f"stopped and exported at step {state.step} of {plan.total_steps}")


def weights_to_export(job: NodeJob, state: Any, checkpoints: Any) -> int:
    """Leave in the engine what `export.which` says; the step after which it was saved. All ranks call it.

    Where the best checkpoint cannot be read, the last weights are taken, and that is said. Raises TrainingFailed where these
    cannot be had again either.
    """
    from trainer.run.exits import TrainingFailed

    if job.spec.export.which == "last" or state.best is None or state.best.step == state.step:
        return int(state.step)
    best, is_first = state.best, os.environ.get("RANK", "0") == "0"
    reason = checkpoints.load_step(best.step)
    if reason is None:
        if is_first:
            print(f"exporting the weights of step {best.step}, the best by {best.metric}: {best.value:.4f}", flush=True)
        return int(best.step)
    if is_first:
        print(f"warning: the best checkpoint cannot be exported ({reason}); the last weights are", flush=True)
    reason = checkpoints.load_step(state.step)
    if reason is not None:
        raise TrainingFailed(f"neither the best checkpoint nor the last one can be read: {reason}")
    return int(state.step)


def reference_of(job: NodeJob, engine: Any) -> Any:
    """What the trained model gives for a few held-out texts: the export is held against it. None where it computes in fp8, as
    nobody who loads the folder does; that is said. All ranks call it."""
    from trainer.export import sample
    from trainer.export.same_logits import NUM_ROWS, ROW_TOKENS, Reference, left_out

    if job.spec.train.precision == "fp8":
        if os.environ.get("RANK", "0") == "0":
            left_out("it was trained in fp8, and is loaded in bf16")
        return None
    rows = [row for row in sample.held_out_rows(Path(job.run_dir), NUM_ROWS, ROW_TOKENS) if row]
    return Reference(tuple(map(tuple, rows)), tuple(engine.logits(rows)))


UNUSED = ("mlflow", "boto3", "scipy")
"""What DeepSpeed's autotuner, accelerate's launcher and transformers' losses of object detection import where it is installed: seconds
of every rank's start."""


def import_libraries() -> None:
    """Import DeepSpeed and transformers' models as though what only their tools use were not installed."""
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import deepspeed  # noqa: F401
        import transformers.modeling_utils  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]


def resolved_patterns(job: NodeJob) -> tuple[str, ...] | None:
    """`train.unfrozen` as plain patterns: the launcher resolves Spectrum's choice before train.json is written."""
    from trainer.run.exits import BadInput

    unfrozen = job.spec.train.unfrozen
    if unfrozen is None or isinstance(unfrozen, tuple):
        return unfrozen
    raise BadInput("train.json holds an unresolved train.unfrozen.spectrum: start the job with `dolphin launch`")


if __name__ == "__main__":
    main()
