"""`checkpoint:` of a job: when and where the state is saved."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.run.settings.base import PositiveInt, SpecModel


class SaveEvery(SpecModel):
    steps: PositiveInt | None = None
    """Save after this many steps."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Save after this many minutes."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Save after this share or number of epochs."""


class BestMetric(SpecModel):
    metric: Annotated[str, Field(min_length=1)]
    """Name in metrics.jsonl: eval_loss, NAME/loss of a validation set, or a score of `evaluate.metrics`."""
    direction: Literal["lower", "higher"] | None = None
    """Which is better; known of losses (lower) and scores (higher)."""


class CheckpointSpec(SpecModel):
    store: str | None = None
    """Where checkpoints outlive the node: a folder, s3://bucket/prefix or gs://bucket/prefix; the run folder where not given."""
    every: SaveEvery | Literal["auto"] = "auto"
    """When to save; `auto` weighs the measured cost of a save against the preemption rate (Young and Daly)."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Committed checkpoints to keep."""
    keep_best: Annotated[str, Field(min_length=1)] | BestMetric | None = None
    """Save whenever this metric of an evaluation is the best so far, and keep that checkpoint besides: eval_loss, NAME/loss, a score, or {metric, direction}."""
    preemptions_per_day: Annotated[float, Field(gt=0)] = 4.0
    """Expected preemptions a day, for `every: auto`; what the run observes takes its place."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts from the last checkpoint after a crash of a rank, before the run fails."""
