"""What a person and the run's record are told of a resume: one line, and the events. Rank 0 alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.resume import Course, extension_line, lost_work
from trainer.run.run_folder import EventKind, RunDir
from trainer.run.spec import NodeJob


@dataclass(frozen=True, slots=True)
class Resumption:
    """A run that goes on."""

    manifest: Manifest
    """Of the checkpoint that it goes on from."""
    refused: Mapping[str, str]
    """Newer folders -> why they could not be used."""
    attempt: int
    course: Course


def tell(job: NodeJob, resumption: Resumption, rounded: str | None, emit: Callable[..., None]) -> None:
    """Print where the run goes on and what was lost, and emit the events. `rounded` says what another cut of the optimizer's
    state rounds."""
    manifest, course, store = resumption.manifest, resumption.course, job.checkpoint_store
    steps, seconds = lost_work(RunDir(job.run_dir), resumption.attempt, manifest.step)
    line = (
        f"attempt {resumption.attempt}: resumed at step {manifest.step} of {course.total_steps} from {store}/{manifest.folder} "
        f"(lost {steps} steps, {seconds:.0f} s)"
    )
    for folder, reason in resumption.refused.items():
        line += f"; {folder} refused: {reason}"
        emit(EventKind.CHECKPOINT_REFUSED, checkpoint=f"{store}/{folder}", reason=reason)
    print(line, flush=True)
    for told in (extension_line(manifest, job.spec.train, course), rounded):
        if told is not None:
            print(told, flush=True)
    emit(
        EventKind.RESUMED,
        step=manifest.step,
        total_steps=course.total_steps,
        checkpoint=manifest.folder,
        store=store,
        lost_steps=steps,
        lost_seconds=seconds,
    )
