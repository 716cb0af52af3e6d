"""Every tracker, with its real package: what was logged is there, and an attempt goes on with the run of the one before."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.rank.trackers import JsonlTracker, MlflowTracker, TensorboardTracker, WandbTracker, requested_trackers
from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob

Reader = Callable[[NodeJob], list[tuple[int, float]]]


def node_job(run_dir: Path, track: dict[str, Any]) -> NodeJob:
    return NodeJob.model_validate(
        {
            "run_id": "job-1", "run_dir": str(run_dir), "cache_dir": "/nowhere", "nproc": 1, "device": "cpu",
            "spec": {
                "name": "job", "model": {"base": "x"}, "data": {"sources": [{"path": "x"}]},
                "train": {"global_batch": 2}, "track": track,
            },
        }
    )  # fmt: skip


def read_jsonl(job: NodeJob) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in RunDir(job.run_dir).read_metrics()]


def read_tensorboard(job: NodeJob) -> list[tuple[int, float]]:
    """Records of the event files in order: 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((RunDir(job.run_dir).path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == "loss"]
            at += 16 + size
    return found


def read_wandb(job: NodeJob) -> list[tuple[int, float]]:
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(Path(job.run_dir).glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for data in leveldb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                found.append((int(row["step"]), float(row["loss"])))
    return found


def leveldb_records(data: bytes) -> list[bytes]:
    """Records of a LevelDB log behind W&B's 7 bytes: blocks of 32 KiB; checksum (4), length (2), type (1), payload."""
    records, part, at = [], b"", 7
    while at + 7 <= len(data):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(part)
            part = b""
    return records


def read_mlflow(job: NodeJob) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    assert job.spec.track.mlflow is not None
    client = MlflowClient(job.spec.track.mlflow.tracking_uri)
    experiment = client.get_experiment_by_name("job")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["train.global_batch"] == "2"
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    return [(metric.step, metric.value) for metric in history]


def tracker_case(name: str, folder: Path) -> tuple[NodeJob, type, Reader]:
    cases: dict[str, tuple[dict[str, Any], type, Reader]] = {
        "jsonl": ({}, JsonlTracker, read_jsonl),
        "tensorboard": ({"tensorboard": True}, TensorboardTracker, read_tensorboard),
        "wandb": ({"wandb": {"project": "p", "mode": "offline"}}, WandbTracker, read_wandb),
        "mlflow": ({"mlflow": {"tracking_uri": f"file://{folder}/mlruns"}}, MlflowTracker, read_mlflow),
    }
    track, kind, reader = cases[name]
    return node_job(folder, track), kind, reader


@pytest.mark.parametrize(
    ("name", "package"), [("jsonl", "json"), ("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_what_two_attempts_log_is_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed (extra [track])")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", os.environ.get("MLFLOW_ALLOW_FILE_STORE", "true"))
    job, kind, read = tracker_case(name, tmp_path)
    attempts = [("stopped", [(1, 0.75), (2, 0.5)]), ("done", [(2, 0.5), (3, 0.25)])]
    for outcome, records in attempts:
        tracker = JsonlTracker(RunDir(job.run_dir).metrics) if name == "jsonl" else requested_trackers(job)[0]
        assert isinstance(tracker, kind)
        tracker.start(job)
        for step, loss in records:
            tracker.log(step, {"loss": loss, "lr": 1e-5})
        tracker.end(outcome)
    assert sorted(read(job)) == [(1, 0.75), (2, 0.5), (2, 0.5), (3, 0.25)]
