"""What a job asks of its exported model, one thing after the other: `python -m trainer.finished.steps TRAIN_JSON`.

Started by the supervisor once the ranks have left. Owns the order, and that one thing that fails loses no other. Each is told in the
log and in an event.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from trainer.run.redaction import redact
from trainer.run.run_folder import EventKind, RunDir
from trainer.run.spec import NodeJob

Step = Callable[[], str]
"""Returns what was done, in a line. Raises whatever keeps it from being done."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="trainer.finished.steps", description="Finish a run's model as its job asks.")
    parser.add_argument("train_json", type=Path)
    parser.add_argument("--attempt", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they draw over each other in a log
    job = NodeJob.read(options.train_json)
    run_all(steps_of(job), RunDir(job.run_dir), options.attempt)


def run_all(steps: Iterator[tuple[str, Step]], run: RunDir, attempt: int) -> None:
    """Every step; one that fails is told, and the next is taken."""
    for what, step in steps:
        try:
            detail, ok = step(), True
        except Exception as error:  # of a library, of the disk, of the network: the model is whole
            detail, ok = redact(" ".join(str(error).split())[:500]) or type(error).__name__, False
        print(f"{what}: {detail}" if ok else f"warning: {what} failed: {detail}", flush=True)
        run.emit(EventKind.AFTERWARDS, attempt=attempt, what=what, ok=ok, detail=detail)


def steps_of(job: NodeJob) -> Iterator[tuple[str, Step]]:
    if job.spec.evaluate.tasks:
        yield "evaluation", partial(evaluate, job)
    if job.spec.export.gguf:
        yield "gguf", partial(write_gguf, job)
    if job.spec.push is not None:
        yield "push", partial(push, job)


def evaluate(job: NodeJob) -> str:
    from trainer.finished import harness

    return harness.of_run(RunDir(job.run_dir), job.spec, partial(print, flush=True))


def write_gguf(job: NodeJob) -> str:
    from trainer.finished.gguf import convert

    files = convert.write(RunDir(job.run_dir).model, job.spec.export.gguf, job.spec.name, partial(print, flush=True))
    lacking = len(job.spec.export.gguf) - len(files)
    return ", ".join(path.name for path in files) + (f"; {lacking} kinds not written, see the log" if lacking else "")


def push(job: NodeJob) -> str:
    from trainer.export import hub

    assert job.spec.push is not None
    return hub.push(RunDir(job.run_dir).model, job.spec.push.repo, job.spec.push.private, partial(print, flush=True))


if __name__ == "__main__":
    main()
