"""The bucket is away when a run comes back: the trainer says so in a line and asks to be started again, as after a preemption."""

from __future__ import annotations

import json

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
