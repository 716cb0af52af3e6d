"""The folder that travels to the node with a run: train.json, the relay, the trainer's source and its requirements."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import trainer
from launcher.backends.sky.node import bucket, relay
from launcher.backends.sky.task import Shipment, relay_config, requirements
from launcher.jobfile.spec import JobSpec
from trainer.run.run_folder import TRAIN_FILE
from trainer.run.spec import NodeJob

FOLDER = "ship"


def pack(folder: Path, job: JobSpec, train: NodeJob, shipment: Shipment, secret_names: Sequence[str]) -> Path:
    """Write the folder anew inside the run's own, and return it."""
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    (target / TRAIN_FILE).write_text(shipment.train_json)
    (target / "relay.json").write_text(json.dumps(relay_config(job, train, secret_names), indent=2))
    (target / "requirements.txt").write_text(requirements())
    shutil.copy2(Path(relay.__file__), target / "relay.py")
    shutil.copy2(Path(bucket.__file__), target / "bucket.py")
    shutil.copytree(
        Path(trainer.__file__).parent, target / "source" / "trainer", ignore=shutil.ignore_patterns("__pycache__")
    )
    return target
