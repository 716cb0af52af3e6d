"""Where metrics go: metrics.jsonl, TensorBoard, Weights & Biases, MLflow, each behind the same three calls.

Owns each service's way of naming, resuming and ending a run. A package is imported only where its tracker is asked for.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trainer.run.packages import require_packages
from trainer.run.run_folder import METRICS_FILE, RunDir, append_line, end_torn_line
from trainer.run.settings.track import MlflowSpec, WandbSpec
from trainer.run.spec import NodeJob


class Tracker(Protocol):
    name: str

    def start(self, job: NodeJob) -> None:
        """Begin, or go on with, the run `job.run_id`. Called on rank 0's main thread."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values of one step or evaluation; `step` may go back once, after a resume."""

    def end(self, outcome: str) -> None:
        """`done`, or `stopped` where the run will go on or has failed. Everything given to `log` is out on return."""


def requested_trackers(job: NodeJob) -> list[Tracker]:
    """Those of `track`, not started. Raises BadInput where a package is missing."""
    require_packages(job.spec.track)
    track, found = job.spec.track, list[Tracker]()
    if track.tensorboard:
        found.append(TensorboardTracker(RunDir(job.run_dir).path / "tensorboard"))
    if track.wandb is not None:
        found.append(WandbTracker(track.wandb))
    if track.mlflow is not None:
        found.append(MlflowTracker(track.mlflow))
    return found


class JsonlTracker:
    """A line of JSON for each record; floats as Python's repr, which reads back to the same bits. `time` is when it was
    written, in seconds since the epoch."""

    name = METRICS_FILE

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, job: NodeJob) -> None:
        end_torn_line(self._path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        append_line(self._path, {"step": int(step), **values, "time": round(time.time(), 3)})

    def end(self, outcome: str) -> None:
        pass


class TensorboardTracker:
    """Event files in a folder, one for each attempt; TensorBoard hides the steps that a resume trains again."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def start(self, job: NodeJob) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            suffix = (
                f".{time.time_ns()}"  # its own names have a second: a quick restart would overwrite its predecessor
            )
            self._writer = SummaryWriter(str(self._folder), purge_step=step, filename_suffix=suffix)
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def end(self, outcome: str) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """One W&B run under dolphin's run id; an attempt goes on with it."""

    name = "Weights & Biases"

    def __init__(self, spec: WandbSpec) -> None:
        self._spec = spec
        self._run: Any = None

    def start(self, job: NodeJob) -> None:
        import wandb

        self._run = wandb.init(
            project=self._spec.project,
            entity=self._spec.entity,
            name=self._spec.name or job.spec.name,
            id=re.sub(r"[^A-Za-z0-9_-]", "-", job.run_id),
            resume="allow" if self._spec.mode == "online" else None,
            mode=self._spec.mode,
            dir=job.run_dir,
            config=job.spec.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # W&B's own step cannot go back, as a resume does

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def end(self, outcome: str) -> None:
        import wandb

        self._run.finish(exit_code=0 if outcome == "done" else 1)
        wandb.teardown()  # waits for its writer process, which may still hold the last records behind `finish`


class MlflowTracker:
    """One MLflow run, remembered in the run folder; an attempt goes on with it."""

    name = "MLflow"

    def __init__(self, spec: MlflowSpec) -> None:
        self._spec = spec
        self._client: Any = None
        self._run_id = ""

    def start(self, job: NodeJob) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder must be allowed in so many words
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(self._spec.tracking_uri)
        remembered = RunDir(job.run_dir).path / "mlflow_run_id"
        if remembered.exists():
            self._run_id = remembered.read_text().strip()
            self._client.update_run(self._run_id, status="RUNNING")
            return
        name = self._spec.experiment or job.spec.name
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run_id = self._client.create_run(experiment_id, run_name=job.run_id).info.run_id
        remembered.write_text(self._run_id + "\n")
        for group, settings in job.spec.model_dump(mode="json").items():
            for key, value in settings.items() if isinstance(settings, dict) else [("", settings)]:
                self._client.log_param(self._run_id, f"{group}.{key}".rstrip("."), str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now_ms, step) for key, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def end(self, outcome: str) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if outcome == "done" else "KILLED")
