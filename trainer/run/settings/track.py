"""`track:` of a job: where metrics go besides metrics.jsonl."""

from __future__ import annotations

from typing import Literal

from trainer.run.settings.base import SpecModel


class WandbSpec(SpecModel):
    project: str
    """Project name."""
    entity: str | None = None
    """Team or user."""
    name: str | None = None
    """Run name; the job's name where not given."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes the run's folder only, to be synced later."""


class MlflowSpec(SpecModel):
    tracking_uri: str
    """Tracking server, or a file:// folder."""
    experiment: str | None = None
    """Experiment; the job's name where not given."""


class TrackSpec(SpecModel):
    tensorboard: bool = False
    """Write TensorBoard event files into the run folder."""
    wandb: WandbSpec | None = None
    """Report to Weights & Biases; needs the secret WANDB_API_KEY unless offline."""
    mlflow: MlflowSpec | None = None
    """Report to MLflow."""
