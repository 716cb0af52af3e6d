"""Which checkpoint to go on from: what is there, what is refused and why, and what is swept away.

Runs on rank 0 alone and touches no engine. Owns the order of preference (newest first, a local copy before the store's)
and the refusal of a job whose results would differ. Refuses to know DeepSpeed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from trainer.checkpoint.manifest import (
    MANIFEST,
    REFUSED_MANIFEST,
    CorruptCheckpoint,
    Manifest,
    differences,
    folder_name,
    step_of,
)
from trainer.checkpoint.writer import committed
from trainer.data.plan import num_steps
from trainer.engine import optimizer
from trainer.run.exits import BadInput
from trainer.run.result import LENGTH_SETTINGS, RESULT_NEUTRAL
from trainer.run.run_folder import RunDir
from trainer.run.settings.base import SpecModel
from trainer.run.settings.train import OptimizerSettings
from trainer.run.spec import TrainSpec
from trainer.run.stores.base import PROBE, CheckpointStore, FolderStore, NotInStore, StoreError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint whose manifest is sound and whose files are there in full length; their content is not read yet."""

    manifest: Manifest
    is_published: bool
    """The remote store has it; what the run folder lacks is read from there."""

    @property
    def folder(self) -> str:
        return self.manifest.folder


@dataclass(slots=True)
class Search:
    """The checkpoints of a run in order of preference. `refused` grows as the candidates are taken."""

    local: FolderStore
    remote: CheckpointStore | None
    is_local_whole: bool
    """Whether `local` holds all ranks' files: not on several nodes with a remote store."""
    refused: dict[str, str] = field(default_factory=dict)
    """Folder -> reason, newest first."""
    _listings: dict[str, dict[str, int]] = field(default_factory=dict)

    def candidates(self) -> Iterator[Candidate]:
        """Newest first. Raises StoreError where a store does not answer: that is no reason to go back in time."""
        stores = [self.local] if self.remote is None or self.is_local_whole else []
        everywhere: list[CheckpointStore] = [*stores, *([self.remote] if self.remote else [])]
        self._listings = {store.url: store.list() for store in everywhere}
        folders = sorted({f for listing in self._listings.values() for f in committed(listing)}, reverse=True)
        for folder in folders:
            seen: set[str] = set()
            for store in everywhere:
                if f"{folder}/{MANIFEST}" not in self._listings[store.url]:
                    continue
                try:
                    manifest = Manifest.decode(store.get(f"{folder}/{MANIFEST}"), folder)
                    if manifest.save_id in seen:
                        continue
                    self._check_sizes(manifest, everywhere)
                except (CorruptCheckpoint, NotInStore) as error:
                    self.refused.setdefault(folder, str(error))
                    continue
                seen.add(manifest.save_id)
                yield Candidate(manifest, self._is_published(manifest))

    def _is_published(self, manifest: Manifest) -> bool:
        if self.remote is None:
            return True
        name = f"{manifest.folder}/{MANIFEST}"
        if name not in self._listings[self.remote.url]:
            return False
        try:
            return Manifest.decode(self.remote.get(name), manifest.folder).save_id == manifest.save_id
        except (CorruptCheckpoint, NotInStore):
            return False

    def _check_sizes(self, manifest: Manifest, stores: Sequence[CheckpointStore]) -> None:
        for file in manifest.files:
            sizes = [self._listings[store.url].get(f"{manifest.folder}/{file.name}") for store in stores]
            if file.size_bytes not in sizes:
                found = next((size for size in sizes if size is not None), None)
                raise CorruptCheckpoint(
                    f"{file.name} is missing"
                    if found is None
                    else f"{file.name} has {found} of {file.size_bytes} bytes"
                )

    def sweep(self, used: Candidate | None) -> None:
        """Make room: folders without a manifest go, and the manifests of refused checkpoints are put aside.

        `used` is what the run goes on from; where it is not published yet, what was uploaded of it stays.
        """
        for store in (self.local, self.remote):
            if store is None:
                continue
            listing = store.list()
            whole = set(committed(listing))
            for folder in self.refused.keys() & whole:
                if used is None or folder != used.folder:
                    with contextlib.suppress(NotInStore):  # a pipe or a folder in its place
                        store.put(f"{folder}/{REFUSED_MANIFEST}", store.get(f"{folder}/{MANIFEST}"))
                    store.delete(f"{folder}/{MANIFEST}")
            kept = {used.folder} if used is not None and not used.is_published else set()
            for name in listing:
                folder = name.split("/")[0]
                is_leftover = step_of(folder) is not None and folder not in whole | kept
                if is_leftover or name.startswith(PROBE):
                    store.delete(name)
        self.local.remove_leftovers()


def manifest_of(stores: Sequence[CheckpointStore], step: int) -> Manifest | str:
    """Of a step's checkpoint, of the first store that has it whole; or why there is none."""
    folder = folder_name(step)
    reason = f"there is no checkpoint of step {step}"
    for store in stores:
        try:
            return Manifest.decode(store.get(f"{folder}/{MANIFEST}"), folder)
        except NotInStore:
            continue
        except (CorruptCheckpoint, StoreError) as error:
            reason = str(error)
    return reason


@dataclass(frozen=True, slots=True)
class Course:
    """How a run goes through its data, as the data plan has it."""

    plan_key: str
    """Changes with everything that decides which conversations are in which step."""
    total_steps: int
    steps_per_epoch: int
    base_key: str = ""
    """Fingerprint of the base's weights on rank 0; empty where there are none to hold a checkpoint against."""


def check_same_job(manifest: Manifest, now: dict[str, Any], run_id: str, course: Course) -> None:
    """Raise BadInput where the job would go on to other results than those that the checkpoint began. A run that had come
    to its end may have been given more epochs or steps. `now` are the job's settings that decide what is computed."""
    then = with_new_defaults(manifest.result_settings)
    if is_extended(manifest, course):
        then |= {key: now[key] for key in LENGTH_SETTINGS}
    found = differences(then, now)
    if found:
        raise BadInput(
            f"run {run_id} has a checkpoint at step {manifest.step} that was made with other settings: "
            f"{'; '.join(found)}. Put them back, or start a new run"
        )
    if manifest.plan_key != course.plan_key:
        raise BadInput(
            f"run {run_id} has a checkpoint at step {manifest.step} that was trained on other data: the files or the "
            "tokenizer have changed since. Put them back, or start a new run"
        )
    if manifest.base_key and course.base_key and manifest.base_key != course.base_key:
        raise BadInput(
            f"run {run_id} has a checkpoint at step {manifest.step} that was trained on another base: the weights of model.base "
            "have changed since, and the checkpoint holds only what is trained. Put them back, or start a new run"
        )


def is_extended(manifest: Manifest, course: Course) -> bool:
    """Whether the checkpoint is the end of a run that is now to be longer."""
    epochs, max_steps = (manifest.result_settings.get(key) for key in LENGTH_SETTINGS)
    if epochs is None:
        return False
    return manifest.step == num_steps(epochs, max_steps, course.steps_per_epoch) < course.total_steps


def extension_line(manifest: Manifest, settings: OptimizerSettings, course: Course) -> str | None:
    """What becomes of the schedule of a run that had come to its end; None where the checkpoint is no such end."""
    if not is_extended(manifest, course):
        return None
    ended = optimizer.learning_rate(settings, manifest.step - 1, manifest.step)
    goes_on = optimizer.learning_rate(settings, manifest.step, course.total_steps)
    return (
        f"the run had come to its end: its schedule is drawn anew over {course.total_steps} steps, and the learning rate goes on at "
        f"{goes_on:.3g}, where it had ended at {ended:.3g}"
    )


def rounding_line(manifest: Manifest, zero_stage: int, world_size: int) -> str | None:
    """What another cut of the state does to moments that are held in blocks; None where they go on as they were."""
    then = (manifest.world_size, manifest.zero_stage)
    if not manifest.optimizer_state.is_rounded or then == (world_size, zero_stage):
        return None
    return (
        f"the optimizer's moments were rounded in blocks of another cut ({then[0]} ranks, ZeRO-{then[1]}) and are rounded once "
        f"more in those of {world_size} ranks, ZeRO-{zero_stage}: the run goes on close to what it was, not with the same bits"
    )


def with_new_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Result settings of a checkpoint, with the defaults of settings that did not exist when it was made.

    A new setting's default is what was done before there was one; a job must survive a new version of this program.
    """
    filled = dict(settings)
    for group, member in TrainSpec.model_fields.items():
        before = {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(f"{group}.")}
        model = member.annotation
        if not before or not (isinstance(model, type) and issubclass(model, SpecModel)):
            continue
        try:
            now = model.model_validate(before).model_dump(mode="json")
        except ValidationError:
            continue  # a setting that no longer exists: it will be shown as a difference
        filled |= {f"{group}.{key}": value for key, value in now.items() if f"{group}.{key}" not in RESULT_NEUTRAL}
    return filled


def lost_work(run: RunDir, attempt: int, resumed_step: int) -> tuple[int, float]:
    """(steps, seconds) that the attempt before this one had trained beyond the checkpoint, by metrics.jsonl."""
    events = [event for event in run.read_events() if isinstance(event.get("step"), int)]
    metrics = [line for line in run.read_metrics() if "loss" in line and isinstance(line.get("step"), int)]
    head = 0
    for earlier in range(1, attempt):
        reached = [line["step"] for line in metrics if line.get("attempt") == earlier]
        begun = [e["step"] for e in events if e.get("event") == "resumed" and e.get("attempt") == earlier]
        head = max([*reached, *begun], default=head)
    took = {line["step"]: line.get("seconds") for line in metrics if resumed_step < line["step"] <= head}
    seconds = {step: float(value) for step, value in took.items() if isinstance(value, int | float)}
    return max(0, head - resumed_step), sum(seconds.values())
