"""The store is away when a run comes back, or while it trains: the trainer says so in a line and asks to be started again, as
after a preemption."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time

import pytest

from tests.support import tiny_job
from tests.support.fault_proxy import FaultProxy


@pytest.fixture(scope="module")
def s3():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with FaultProxy(*server.get_host_and_port()) as proxy:
        import boto3

        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=proxy.url, **keys).create_bucket(Bucket="bucket")
        yield proxy
    server.stop()


def test_a_store_that_is_away_at_a_resume_ends_in_75_and_never_in_1(s3, tmp_path):
    where = {
        "AWS_ENDPOINT_URL": s3.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1",
        "DOLPHIN_STORE_RETRY_S": "2", "DOLPHIN_STORE_REQUEST_S": "2",
    }  # fmt: skip
    checkpoint = {"store": "s3://bucket/runs", "every": {"steps": 2}}
    run = tiny_job.write_job(tmp_path, "away", nproc=2, train={"max_steps": 4}, checkpoint=checkpoint)
    s3.rule = lambda request: "403" if request.method == "PUT" and "step-00000004" in request.path else None
    tiny_job.train(run, **where)  # its last save is not published: the model is written all the same
    assert "could not be published" in run.log.read_text()
    before = len(run.log.read_text())
    for rule in (lambda request: "silence", lambda request: "503"):
        s3.rule = rule
        tiny_job.train(run, expect=75, **where)
        said = run.log.read_text()[before:]
        assert "Traceback" not in said
        outcome = json.loads(run.outcome.read_text())
        assert (outcome["state"], outcome["exit_code"]) == ("preempted", 75)
        assert "checkpoint.store s3://bucket/runs" in outcome["reason"]
        assert "does not answer" in outcome["reason"]
    s3.rule = lambda request: None
    tiny_job.train(run, **where)
    assert "resumed at step 4" in run.log.read_text()


def mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, that can be made read-only under a run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder))
    except subprocess.CalledProcessError:
        pytest.skip("this machine does not let a small disk be mounted")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount_once_saved(disk, how: str) -> threading.Thread:
    def work() -> None:
        while not list(disk.glob("*/checkpoints/*/manifest.json")):
            time.sleep(0.01)
        while subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=False, capture_output=True).returncode:
            time.sleep(0.01)  # a file is open to be written

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_shared_folder_that_goes_away_while_it_trains_ends_in_75_and_never_in_1(disk, tmp_path):
    checkpoint = {"store": str(disk), "every": {"steps": 2}}
    run = tiny_job.write_job(tmp_path, "away", train={"max_steps": 60}, checkpoint=checkpoint)
    gone = remount_once_saved(disk, "ro")
    tiny_job.train(run, expect=75, DOLPHIN_STORE_RETRY_S="1")
    gone.join()
    tiny_job.train(run, expect=75, DOLPHIN_STORE_RETRY_S="0.1")  # still away when it comes back
    reasons = [e["reason"] for e in run.read_events() if e["event"] == "finished"]
    assert all("the file system is read-only" in reason for reason in reasons)
    assert "last checkpoint at step" in reasons[0]
    assert "does not answer" in reasons[1]
    assert "Traceback" not in run.log.read_text()
    mount("-o", "remount,rw", str(disk))
    tiny_job.train(run)
    assert "resumed at step" in run.log.read_text()
