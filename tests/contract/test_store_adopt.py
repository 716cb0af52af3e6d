"""A run whose bucket is all that is left is a run again: on another laptop, without the SkyPilot that started it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import Submission
from launcher.backends.sky import elsewhere, reading, store_access
from launcher.backends.sky.adopting import adopt
from launcher.backends.sky.backend import SkyRuns
from launcher.backends.sky.jobs import Jobs
from launcher.backends.sky.node import bucket
from launcher.backends.sky.stopping import Stopping
from launcher.commands.adopt import adopt_command
from launcher.config.yaml_lines import write_yaml
from launcher.follow.status import model_of, observe
from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec
from launcher.runs import ledger
from launcher.runs.errors import BadUsage
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState
from tests.support import object_stores
from tests.support.fault_proxy import FaultProxy
from trainer.run.run_folder import SAVE_FILE, STOP_FILE, EventKind, RunDir, append_line, write_atomic
from trainer.run.spec import NodeJob
from trainer.run.stores import lease as leases
from trainer.run.stores import object_store
from trainer.run.stores.lease import Lease
from trainer.run.stores.object_store import ObjectStore


@pytest.fixture(autouse=True)
def server(object_server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultProxy]:
    with FaultProxy(*object_server) as proxy:
        for name, value in object_stores.environment(proxy.url, retry_s=1).items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home-a"))
        monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(elsewhere, "_LOOK_EVERY_S", 0.05)
        monkeypatch.setattr(reading, "BUCKET_S", 0.0)
        monkeypatch.setattr(SkyRuns, "poll_s", 0.0)
        yield proxy


class Sky:
    """A SkyPilot that takes a job in, or one that has never heard of any."""

    def __init__(self) -> None:
        self.launched: list[str] = []

    def enabled(self) -> list[str]:
        return ["aws"]

    def jobs(self, part: str, *, active_only: bool) -> list[Any]:
        return []

    def check_task(self, task: dict[str, Any]) -> None:
        pass

    def pending_launch(self, run_id: str) -> bool:
        return False

    def clusters(self) -> list[Any]:
        return []

    def uploads(self) -> set[str]:
        return set()

    def launch_managed(self, task: dict[str, Any], run_id: str, asked: Any) -> int:
        self.launched.append(run_id)
        return 7


class Node:
    """What a node does to the bucket, with its own script and lease."""

    def __init__(self, record: RunRecord, folder: Path) -> None:
        folder.mkdir()
        self.run = RunDir(folder)
        self.url = NodeJob.read(record.files.train_json).store
        self.store = ObjectStore(self.url)
        self.lease = Lease(self.store, record.run_id, "node-a", "holder-of-node-a")
        bucket._begin(folder, self.store, self.lease)
        (folder / "journal").write_text("abcd1234")
        append_line(folder / "nodes.jsonl", {"time": 1000.0, "node": "node-a", "infra": "aws/us-east-1", "setup_at": 1000.0})  # fmt: skip
        self.run.emit(EventKind.ATTEMPT_STARTED, attempt=1)
        append_line(folder / "metrics.jsonl", {"step": 3, "loss": 2.0})
        (folder / "log.txt").write_text("step 3 of 9\n")

    def save(self) -> None:
        bucket.save(self.run.path, self.store)

    def end(self) -> None:
        write_atomic(
            self.run.outcome,
            json.dumps(
                {"state": "done", "exit_code": 0, "reason": "", "step": 9, "model": str(self.run.path / "model")}
            ),
        )
        (self.run.path / "model").mkdir()
        (self.run.path / "model" / "config.json").write_text("{}")
        bucket.publish(self.run.path, self.store, self.lease)
        bucket.finish(self.run.path, self.store, self.lease)


def launched(tmp_path: Path, place: str) -> tuple[RunRecord, Node]:
    job = JobSpec.model_validate({
        "name": "demo", "model": {"base": "owner/base"}, "data": {"sources": [{"path": "hf://owner/data"}]},
        "checkpoint": {"store": f"s3://bucket/{place}"}, "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    })  # fmt: skip
    run_id = ledger.new_id("demo")
    train = NodeJob(run_id=run_id, run_dir=f"/tmp/dolphin/{run_id}", cache_dir="/tmp/dolphin/cache", nproc=1, device="cpu", spec=job.train_spec())  # fmt: skip
    record = ledger.create(run_id, "demo", "sky", secret_names=job.secrets)
    write_atomic(record.files.job, write_yaml(job.model_dump(mode="json", exclude_unset=True)))
    write_atomic(record.files.train_json, train.model_dump_json())
    record = ledger.update(record, submissions=1, nproc=1, device="cpu")
    sky = Sky()
    SkyRuns(sky).submit(Submission(record, job, train))
    assert sky.launched == [run_id]
    return record, Node(record, tmp_path / "node")


def test_a_run_is_seen_stopped_and_fetched_on_another_laptop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, node = launched(tmp_path, "adopt")
    node.save()
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home-b"))
    assert adopt_command(node.url) == 0
    assert capsys.readouterr().out.strip() == before.run_id
    record = ledger.find(before.run_id)
    assert (record.submissions, record.secret_names, record.device) == (1, before.secret_names, "cpu")
    assert load_job(record.files.job).checkpoint.store == "s3://bucket/adopt"
    there = SkyRuns(Sky())
    status = there.status(record)
    assert (status.state, status.detail.partition(" (")[0]) == (RunState.RUNNING, "on node node-a")
    assert "".join(chunk.text for chunk in there.logs(record)) == "step 3 of 9\n"
    assert b'"loss": 2.0' in (there.read_file(record, "metrics.jsonl") or b"")
    with pytest.raises(BadUsage, match=r"node node-a writes this run"):
        there.preflight(load_job(record.files.job), NodeJob.read(record.files.train_json), {})
    with pytest.raises(BadUsage, match="is a run of this machine already"):
        adopt(node.url)

    node.end()
    there = SkyRuns(Sky())
    status = there.status(record)
    assert (status.state, status.exit_code) == (RunState.SUCCEEDED, 0)
    assert model_of(observe(there, record)) == f"{node.url}/model", "the node that it was written on is gone"
    there.fetch(record, "model", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_a_node_of_another_laptop_s_is_asked_to_leave_for_good_and_not_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, node = launched(tmp_path, "stop")
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home-b"))
    record = adopt(node.url)
    ended: list[int] = []

    def leave() -> None:
        while not bucket._take_requests(node.run.path, node.store):
            pass
        ended.append(bucket.finish(node.run.path, node.store, node.lease))

    thread = threading.Thread(target=leave)
    thread.start()
    report = SkyRuns(Sky()).down(record, 60)
    thread.join()
    assert (node.run.path / STOP_FILE).exists()
    assert ended == [bucket.TAKEN], "with 75 the SkyPilot that started it would take another node"
    assert report.detail == "asked to stop through the bucket; the node has left the run"
    assert not report.is_gone, "its machine is not seen from here"
    assert "sky status" in report.left[0]


def test_a_run_whose_node_was_taken_away_can_be_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, node = launched(tmp_path, "lost")
    node.save()
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home-b"))
    record = adopt(node.url)
    monkeypatch.setattr(leases, "LASTS_S", 0.0)
    there, sky = None, Sky()
    status = SkyRuns(sky).status(record)
    assert status.state is RunState.LOST
    assert "dolphin resume" in status.detail
    there = SkyRuns(sky)
    job, train = load_job(record.files.job), NodeJob.read(record.files.train_json)
    there.preflight(job, train, record.options)
    there.submit(Submission(ledger.update(record, submissions=2, handle=None), job, train))
    assert sky.launched == [record.run_id]
    assert json.loads(node.store.get("run/record.json"))["submissions"] == 2


def test_what_an_earlier_start_ended_with_is_not_read_as_this_one_s_end(tmp_path: Path) -> None:
    _, node = launched(tmp_path, "twice")
    write_atomic(node.run.outcome, json.dumps({"exit_code": 75, "reason": "stopped"}))
    node.save()
    node.run.outcome.unlink()  # as the next start does
    node.save()
    assert "run/outcome.json" not in node.store.list("run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run_id": "../../evil"}, "its records are of another run"),
        ({"name": "other"}, "its records are of another run"),
        ({"backend": "elsewhere"}, "its records are of another run"),
        ({"secret_names": 3}, "its records cannot be read"),
    ],
)
def test_a_stranger_s_records_name_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    _, node = launched(tmp_path, "evil")
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home-b"))
    facts = json.loads(node.store.get("run/record.json"))
    node.store.put("run/record.json", json.dumps(facts | change).encode())
    with pytest.raises(BadUsage, match=said):
        adopt(node.url)
    assert not (tmp_path / "home-b").exists()
    with pytest.raises(BadUsage, match="is no run that was started"):
        adopt("s3://bucket/evil/nothing")
    with pytest.raises(BadUsage, match="is no bucket"):
        adopt("/tmp/x")


def test_no_key_is_kept_in_the_bucket(tmp_path: Path) -> None:
    before, node = launched(tmp_path, "keys")
    kept = b"".join(node.store.get(name) for name in node.store.list("run"))
    assert b"AKIATEST" not in kept
    assert store_access.environment_of_run(before.folder)["AWS_ENDPOINT_URL_S3"]


def test_down_of_a_run_in_a_bucket_asks_for_a_save_and_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, node = launched(tmp_path, "save")
    monkeypatch.setattr("launcher.backends.sky.stopping._SAVED_AGAIN_S", 0.05)
    append_line(record.files.metrics, {"step": 3, "loss": 2.0})

    def save_as_asked() -> None:
        while not bucket._take_requests(node.run.path, node.store):
            pass
        assert (node.run.path / SAVE_FILE).exists()
        node.run.emit(EventKind.CHECKPOINT_SAVED, attempt=1, step=3)
        node.save()

    thread = threading.Thread(target=save_as_asked)
    thread.start()
    client = Sky()
    assert Stopping(client, Jobs(client), 0.05)._save_first(record, None, 60)
    thread.join()
