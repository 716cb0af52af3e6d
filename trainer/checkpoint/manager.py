"""CheckpointManager: what the loop asks for. When to save, saving behind the training, and going on from a save.

Owns the agreement between ranks and the one save in flight. Files are `writer`'s, the choice of a checkpoint is
`resume`'s, DeepSpeed's insides are `zero_state`'s.
"""

from __future__ import annotations

import importlib.metadata
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import random_state
from trainer.checkpoint.agreement import Agreement
from trainer.checkpoint.copying import Copying
from trainer.checkpoint.manifest import CorruptCheckpoint, FileEntry, Manifest, folder_name
from trainer.checkpoint.resume import (
    Candidate,
    Course,
    Search,
    check_same_job,
    manifest_of,
    rounding_line,
)
from trainer.checkpoint.schedule import SaveSchedule
from trainer.checkpoint.shards import ShardReader
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.telling import Resumption, tell
from trainer.checkpoint.trainer_state import TrainerState
from trainer.checkpoint.writer import NotPublished, SaveWriter, random_file
from trainer.data.batch import Share
from trainer.engine import threads, zero_state
from trainer.run.exits import StoreGone, TrainingFailed
from trainer.run.optimizer_state import OPTIMIZER_STATES
from trainer.run.result import result_hash, result_settings
from trainer.run.run_folder import EventKind, RunDir
from trainer.run.spec import NodeJob
from trainer.run.stores import lease, opening
from trainer.run.stores.base import FolderStore, StoreAway, StoreError

Emit = Callable[..., None]
PROGRESS_EVERY_S = 5.0
"""How often a wait for a save looks whether the save gets on."""
PACKAGES = ("dolphin-launcher", "torch", "deepspeed", "transformers", "safetensors")


def probe_store(job: NodeJob, *, is_first: bool = True) -> None:
    """Write, read and delete a small object where the checkpoints will go. Raises BadInput with the reason, or StoreGone."""
    opening.probe(opening.open_store(job.checkpoint_store), is_first=is_first)


class CheckpointManager:
    """All ranks make the same calls in the same order, except where a method says otherwise."""

    last_save_seconds: float | None = None
    """How long the last save took, from the call until it was published."""
    last_blocked_seconds: float | None = None
    """How long the last save held training up."""
    stalled_s = 0.0
    """Seconds that saves have held the training thread up, since it set this to 0."""

    def __init__(
        self,
        job: NodeJob,
        engine: Any,
        course: Course,
        *,
        share: Share,
        attempt: int,
        emit: Emit | None,
    ) -> None:
        """`engine` is DeepSpeed's. `emit(EventKind, **fields)` is given on rank 0 only."""
        rank, world_size = self._rank, self._world_size = share.rank, share.world_size
        self._job, self._engine, self._course = job, engine, course
        self._attempt, self._emit = attempt, emit
        self._run = RunDir(job.run_dir)
        self._agree = Agreement(rank, world_size)
        steps = course.total_steps, course.steps_per_epoch
        self._schedule = SaveSchedule(job.spec.checkpoint, self._run, attempt, *steps)
        self.alive: Callable[[], None] = lambda: None
        """Called in the training thread whenever a load or a save that it waits for got on."""
        self._got_on = threading.Event()
        """A file of the save in flight is written or sent since the training thread last looked."""
        target, local = opening.open_store(job.checkpoint_store), FolderStore(Path(self._run.checkpoints))
        is_folder, settings = isinstance(target, FolderStore), job.spec.checkpoint
        one_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) == world_size
        self._writer = SaveWriter(
            local=target if isinstance(target, FolderStore) else local,
            remote=None if is_folder else target,
            rank=rank,
            world_size=world_size,
            commits_locally=is_folder or one_node,
            is_node_leader=os.environ.get("LOCAL_RANK", "0") == "0",
            keep=settings.keep,
            keeps_best=settings.keep_best is not None,
            warn=self._warn,
            may_commit=(lambda: None) if is_folder else lease.guard(job.store),
            got_on=self._got_on.set,
        )
        self._kept = OPTIMIZER_STATES[job.spec.train.optimizer]
        self._snapshot = Snapshot(self._kept)
        self._copy: Copying | None = None
        zero_state.call_before_update(engine, self._let_copy_end)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._saved_step = -1
        """Step of the last save that was begun, or that the run was resumed from."""
        self._save_id = self._agree.first(os.urandom(4).hex())

    # ---- going on ----

    def probe(self) -> None:
        """Rank 0 alone: whether the store can be written, read and deleted from. Raises BadInput."""
        opening.probe(self._writer.remote or self._writer.local)

    def resume(self) -> TrainerState | None:
        """Go on from the newest checkpoint that verifies; None where there is none yet.

        Raises BadInput where the job has changed, TrainingFailed where checkpoints exist and none can be used, StoreGone
        where the store does not answer.
        """
        try:
            return self._resume()
        except StoreError as error:
            if self._writer.remote is None and not isinstance(error, StoreAway):
                raise
            raise StoreGone(f"the checkpoint store does not answer: {error}") from error

    def _resume(self) -> TrainerState | None:
        search = Search(self._writer.local, self._writer.remote, self._writer.commits_locally)
        candidates = search.candidates() if self._rank == 0 else iter(())
        while True:
            candidate = self._agree.done_first(lambda: self._next_compatible(candidates))
            if candidate is None:
                break
            reason = self._load(candidate.manifest)
            if reason is None:
                break
            search.refused[candidate.folder] = reason
        nothing = self._agree.first(self._nothing_usable(candidate, search.refused))
        if nothing is not None:
            raise TrainingFailed(nothing)
        self._agree.done_first(lambda: self._sweep(search, candidate))
        self._snapshot.reserve(self._engine)
        if candidate is None:
            self._schedule.saved(0)
            return None
        self._saved_step = candidate.manifest.step
        self._schedule.saved(self._saved_step)
        if self._emit is not None:
            stage = self._engine.zero_optimization_stage()
            resumption = Resumption(candidate.manifest, search.refused, self._attempt, self._course)
            tell(self._job, resumption, rounding_line(candidate.manifest, stage, self._world_size), self._emit)
        if not candidate.is_published:
            self._publish_in_background(candidate.manifest)
        return TrainerState.from_state_dict({**candidate.manifest.state, "attempt": self._attempt})

    def _sweep(self, search: Search, candidate: Candidate | None) -> None:
        """Rank 0 alone, before any rank writes."""
        search.sweep(candidate)
        if candidate is not None and not candidate.is_published:
            self._writer.try_again(candidate.folder, candidate.manifest.save_id)

    def _nothing_usable(self, candidate: Candidate | None, refused: dict[str, str]) -> str | None:
        """Checkpoints that exist and cannot be used must be looked at: starting over in silence would cost days."""
        if candidate is not None or not refused:
            return None
        listed = "; ".join(f"{folder}: {reason}" for folder, reason in refused.items())
        where = self._job.checkpoint_store
        return f"no checkpoint of this run can be used ({listed}). To start again from step 0, delete {where}"

    def _next_compatible(self, candidates: Any) -> Candidate | None:
        candidate = next(candidates, None)
        if candidate is not None:
            settings = result_settings(self._job.spec)
            check_same_job(candidate.manifest, settings, self._job.run_id, self._course)
        return candidate

    def _load(self, manifest: Manifest) -> str | None:
        """Put the checkpoint into the engine. None, or why it cannot be used: the same on every rank."""
        reader = ShardReader(manifest, self._writer.stores)
        outcome: Exception | None = None
        try:
            if zero_state.trainable_shapes(self._engine) != manifest.shapes:
                raise CorruptCheckpoint("it was made of a model with other trainable parameters")
            zero_state.fill_shards(self._engine, self._kept, self._read_alive(reader), manifest.optimizer_step)
            random_data = None
            if self._rank < manifest.world_size:
                random_data = reader.read_file(manifest.random_files[self._rank])
        except (CorruptCheckpoint, StoreError) as error:
            outcome = error
        finally:
            reader.close()
        outcomes = self._agree.all(outcome)
        for found in outcomes:
            if isinstance(found, StoreError):
                raise found
        refusal = next((str(found) for found in outcomes if found is not None), None)
        if refusal is not None:
            return refusal
        zero_state.refresh_parameters(self._engine)
        if random_data is not None:
            random_state.restore(random_data, self._engine.device)
        else:
            random_state.derive(self._job.spec.train.seed, manifest.step, self._rank)
        return None

    def _read_alive(self, reader: ShardReader) -> zero_state.ReadRange:
        def read(name: str, start: int, numel: int) -> tuple[torch.Tensor, ...]:
            found = reader.read(name, start, numel)
            self.alive()
            return found

        return read

    def _publish_in_background(self, manifest: Manifest) -> None:
        """Finish the upload that the last attempt could not; what arrived then is not sent again."""
        mine = [file for i, file in enumerate(manifest.files) if i % self._world_size == self._rank]

        def work() -> int:
            try:
                return self._writer.publish(manifest.folder, manifest.save_id, mine, lambda _: manifest)
            except StoreError as error:
                raise NotPublished(str(error), manifest.size_bytes) from error

        self._start(manifest.step, work)

    def load_step(self, step: int) -> str | None:
        """Put a kept checkpoint into the engine, to be exported. None, or why that cannot be, the same on every rank: then the
        engine may be half filled, and must be given another."""
        manifest = self._agree.done_first(lambda: manifest_of(self._writer.stores, step))
        try:
            return manifest if isinstance(manifest, str) else self._load(manifest)
        except StoreError as error:
            return str(error)

    # ---- saving ----

    def local_due(self, state: TrainerState) -> bool:
        """Rank 0 alone: whether the step count or the clock asks for a save; the loop tells the other ranks."""
        if self._schedule.is_due_by_step(state.step):
            return True
        if self._thread is not None and self._thread.is_alive():
            return False
        return self._schedule.is_due_by_clock(state.step, self.last_blocked_seconds, self.last_save_seconds)

    def save(self, state: TrainerState, *, wait: bool = False) -> float:
        """Save the state after `state.step` steps; returns how many seconds it took.

        Returns at once, or with `wait` when the checkpoint is committed and published. The state is copied to host memory
        meanwhile, or written from there where it is offloaded: the optimizer's next update waits for that
        (`last_blocked_seconds` counts it). A save still in flight is waited for first. Raises TrainingFailed where it or this one failed.
        """
        begun = time.monotonic()
        self.finish()
        if state.step != self._saved_step:
            self._begin(state, begun)
        if wait:
            self.finish()
        seconds = time.monotonic() - begun
        self.stalled_s += seconds
        return seconds

    def check(self) -> None:
        """Raise TrainingFailed where the save in the background failed, StoreGone where only the store did. Every step."""
        if isinstance(
            self._failure, (StoreGone, StoreAway)
        ):  # of a folder that is the store, nothing else was to hold it
            raise StoreGone(f"a checkpoint could not be saved: {self._failure}") from self._failure
        if self._failure is not None:
            raise TrainingFailed(f"a checkpoint could not be saved: {self._failure}") from self._failure

    def finish(self) -> None:
        """Wait until the save in flight is committed and published, on all ranks."""
        if self._thread is not None:
            while self._thread.is_alive():
                self._thread.join(PROGRESS_EVERY_S)
                if self._got_on.is_set():
                    self._got_on.clear()
                    self.alive()
            self._thread = None
            self.check()
            self._agree.wait_for_all()  # rank 0 commits for all: no rank is further than it

    def wait_for_all(self) -> None:
        """Until all ranks are here, for as long as it takes: before they leave the process group, which none may do while
        another still writes."""
        self._agree.wait_for_all()

    def _begin(self, state: TrainerState, begun: float) -> None:
        self._snapshot.begin(self._engine)
        self._saved_step = state.step
        self._schedule.saved(state.step)
        save_id = f"{self._save_id}-{state.step}"
        frozen = TrainerState.from_state_dict(state.state_dict())

        def complete(files: Sequence[FileEntry]) -> Manifest:
            return self._manifest(frozen, save_id, files)

        copying = self._copy = Copying(time.monotonic() - begun)

        def work() -> int:
            if self._snapshot.is_lent:
                files = copying.run(lambda: self._writer.write(frozen.step, save_id, self._snapshot))
                return self._writer.commit(frozen.step, save_id, files, complete)
            copying.run(self._snapshot.copy)
            return self._writer.save(frozen.step, save_id, self._snapshot, complete)

        self._start(state.step, work, begun, save_id, copying)

    def _let_copy_end(self) -> None:
        """The optimizer is about to change what a save in flight copies: wait until it has its copy."""
        if self._copy is not None:
            began = time.monotonic()
            self._copy.wait()
            self.stalled_s += time.monotonic() - began

    def _start(
        self,
        step: int,
        work: Callable[[], int],
        begun: float | None = None,
        save_id: str | None = None,
        copying: Copying | None = None,
    ) -> None:
        """Run `work` in the thread of the one save in flight."""

        def run() -> None:
            started = time.monotonic() if begun is None else begun
            url = self._url(folder_name(step))
            try:
                size_bytes = work()
            except NotPublished as late:
                size_bytes, url = late.size_bytes, str(self._writer.local.root / folder_name(step))
                self._warn(
                    f"the checkpoint of step {step} is kept in {url} and could not be published, training goes on and the next "
                    f"save is published: {late}"
                )
            except Exception as error:  # whatever it was, the next step must not go on as if the state were safe
                self._failure = error
                if save_id is not None:
                    self._writer.report_failure(step, save_id, str(error))
                return
            seconds = time.monotonic() - started
            blocked_s = 0.0
            if copying is not None:
                blocked_s = copying.blocked_s
                self.last_save_seconds, self.last_blocked_seconds = seconds, blocked_s
            if self._emit is not None:
                self._emit(
                    EventKind.CHECKPOINT_SAVED,
                    step=step,
                    checkpoint=url,
                    size_bytes=size_bytes,
                    blocked_seconds=blocked_s,
                    seconds=seconds,
                )

        self._thread = threads.start(run, f"save-step-{step}")

    def _manifest(self, state: TrainerState, save_id: str, files: Sequence[FileEntry]) -> Manifest:
        return Manifest(
            save_id=save_id,
            step=state.step,
            total_steps=self._course.total_steps,
            world_size=self._world_size,
            zero_stage=self._engine.zero_optimization_stage(),
            optimizer_step=self._snapshot.optimizer_step,
            state=state.state_dict(),
            plan_key=self._course.plan_key,
            base_key=self._course.base_key,
            result_settings=result_settings(self._job.spec),
            result_hash=result_hash(self._job.spec),
            shapes=self._snapshot.shapes,
            files=tuple(files),
            random_files=tuple(random_file(rank, save_id) for rank in range(self._world_size)),
            versions={name: _version(name) for name in PACKAGES},
            saved_at=time.time(),
        )

    def _url(self, folder: str) -> str:
        return f"{self._job.checkpoint_store}/{folder}"

    def _warn(self, message: str) -> None:
        print(f"rank {self._rank}: warning: {message}", flush=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
