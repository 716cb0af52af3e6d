"""TrainSpec: the part of job.yaml that reaches the node, and NodeJob, the `train.json` that carries it there.

Owns the two and the paths that follow from them. Refuses to know clouds, prices, YAML and torch: a laptop without the
training stack loads it.
The groups of settings are in `trainer.run.settings`, a module each; what contradicts what is in
`trainer.run.contradictions`, and what a checkpoint is compared by in `trainer.run.result`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from trainer.run.limits import Limits
from trainer.run.run_folder import CHECKPOINTS_FOLDER
from trainer.run.settings.base import PositiveInt, SpecModel
from trainer.run.settings.card import CardSpec
from trainer.run.settings.checkpoint import CheckpointSpec
from trainer.run.settings.data import DataSpec
from trainer.run.settings.evaluate import EvaluateSpec
from trainer.run.settings.export import ExportSpec
from trainer.run.settings.model import ModelSpec
from trainer.run.settings.push import PushSpec
from trainer.run.settings.track import TrackSpec
from trainer.run.settings.train import OptimizerSettings
from trainer.run.work import Work


class TrainSpec(SpecModel):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$")]
    """Name of the job: lower-case letters, digits and hyphens, at most 48."""
    model: ModelSpec
    """The base model, its tokenizer and its attention."""
    data: DataSpec
    """The conversations and what is trained on."""
    train: OptimizerSettings = OptimizerSettings()
    """The optimization."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """When and where the state is saved."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """What the model is asked besides its loss: at every evaluation, and once it is exported, before its node is given back."""
    track: TrackSpec = TrackSpec()
    """Where metrics go besides metrics.jsonl."""
    export: ExportSpec = ExportSpec()
    """What a finished run leaves besides the trained weights."""
    push: PushSpec | None = None
    """Where the finished model is published; nowhere where not given."""
    card: CardSpec = CardSpec()
    """What the model card says in your words."""


def has_more_to_do(spec: TrainSpec) -> bool:
    """Whether the job asks for anything once its model is there."""
    return bool(spec.export.gguf or spec.evaluate.tasks or spec.push)


class NodeJob(SpecModel):
    """`train.json`: absolute facts for one run on one backend, and no cloud. Paths in `spec` are absolute here."""

    run_id: str
    """The launcher's run id; it names the checkpoint prefix."""
    run_dir: str
    """The run folder as the node sees it (trainer.run.run_folder)."""
    cache_dir: str
    """Prepared data is kept here, keyed by content."""
    nproc: PositiveInt
    """Ranks on each node."""
    num_nodes: PositiveInt = 1
    """Nodes that train; the backend tells each of them which one it is."""
    device: Literal["cuda", "cpu"]
    """Where the ranks compute."""
    step_seconds: Annotated[float, Field(gt=0)] | None = None
    """Planned seconds of an optimizer step; None where there are no figures for the machine. Bounds the silence that is no hang
    until steps were seen."""
    spec: TrainSpec
    """The specification, with `train.global_batch` and `train.zero` settled."""
    work: Work | None = None
    """What it computes, counted by the launcher; None where the model's shape is not known there."""
    axolotl: str = ""
    """Text of the axolotl configuration that the job was made from, for the card; empty where it was made from none."""
    limits: Limits = Limits()
    """Until when, for how much, and whom it tells."""

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.nproc * self.num_nodes

    @property
    def global_batch(self) -> int:
        """Packed sequences per optimizer step; settled by the launcher, never changed by the number of ranks."""
        if self.spec.train.global_batch is None:
            raise ValueError("train.json must state train.global_batch: the launcher settles it")
        return self.spec.train.global_batch

    @property
    def checkpoint_store(self) -> str:
        """URL or folder that holds this run's checkpoints."""
        return f"{self.store}/{CHECKPOINTS_FOLDER}"

    @property
    def store(self) -> str:
        """URL or folder of this run in `checkpoint.store`; the run folder where there is none."""
        if self.spec.checkpoint.store is None:
            return str(Path(self.run_dir))
        return f"{self.spec.checkpoint.store.rstrip('/')}/{self.run_id}"

    @classmethod
    def read(cls, path: str | Path) -> NodeJob:
        """From the file, which states every setting, lest another version's defaults decide: one at its default counts as
        not stated, so that `problems` judges what was read as it judged the job."""
        job = cls.model_validate_json(Path(path).read_bytes())
        return job.model_copy(update={"spec": TrainSpec.model_validate(job.spec.model_dump(exclude_defaults=True))})
