"""As whom, where and in which region a bucket is asked: Amazon's own chain, against a server that remembers who signed.

The disasters: keys that lie in ~/.aws/credentials, as on every node of another cloud, and "no credentials" after the machine
was paid for; a bucket of Frankfurt that is asked in Virginia and refuses.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.fault_proxy import FaultProxy
from trainer.run.stores import aws
from trainer.run.stores.base import StoreRefused
from trainer.run.stores.opening import open_store

FILE = "[default]\naws_access_key_id = FILEKEY\naws_secret_access_key = w\n[lab]\naws_access_key_id = LABKEY\naws_secret_access_key = w\n"


@pytest.fixture
def proxy(object_server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultProxy]:
    """A server of S3 and of tokens, and a machine on which nothing is configured."""
    with FaultProxy(*object_server) as found:
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "REGION", "DEFAULT_REGION", "ENDPOINT_URL_S3"):  # fmt: skip
            monkeypatch.delenv(f"AWS_{name}", raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("DOLPHIN_STORE_RETRY_S", "2")
        aws._told.cache_clear()
        yield found


def signed_as(proxy: FaultProxy) -> tuple[str, str]:
    """Key and region of the newest signed request, after one that worked."""
    store = open_store("s3://bucket/access")
    store.put("x", b"word")
    assert store.get("x") == b"word"
    key, _, region, *_ = next(one.signed_as for one in reversed(proxy.requests) if one.path.startswith("/bucket/")).split("/")  # fmt: skip
    return key, region


def test_keys_in_the_credentials_file_are_taken_and_those_of_the_environment_go_before(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(StoreRefused, match=r"s3://bucket/access: no credentials: set AWS_ACCESS_KEY_ID .*~/\.aws"):
        signed_as(proxy)
    (tmp_path / "credentials").write_text(FILE)
    assert signed_as(proxy)[0] == "FILEKEY"
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert signed_as(proxy)[0] == "LABKEY"
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(StoreRefused, match=r"profile.*absent"):
        signed_as(proxy)
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "w")
    assert signed_as(proxy)[0] == "ENVKEY"


def test_a_profile_of_home_is_taken_on_a_node_that_has_it_and_is_no_error_on_one_that_has_a_role(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text(FILE)
    monkeypatch.setenv(aws.PROFILE_VARIABLE, "lab")
    assert signed_as(proxy)[0] == "LABKEY"
    monkeypatch.setenv(aws.PROFILE_VARIABLE, "absent")
    assert signed_as(proxy)[0] == "FILEKEY"


def test_a_web_identity_is_exchanged_for_keys(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("token-of-a-pod")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trainer")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert signed_as(proxy)[0].startswith("ASIA"), "a key that ends"
    (tmp_path / "token").write_text("x")
    with pytest.raises(StoreRefused, match="no credentials: Parameter validation failed"):
        signed_as(proxy)


def test_an_instance_s_role_is_taken(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    class Metadata(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            role = {"Code": "Success", "AccessKeyId": "ROLEKEY", "SecretAccessKey": "w", "Token": "t", "Expiration": "2099-01-01T00:00:00Z"}  # fmt: skip
            body = {"/latest/api/token": "token", "/latest/meta-data/iam/security-credentials/": "trainer"}
            text = body.get(self.path, json.dumps(role)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert signed_as(proxy)[0] == "ROLEKEY"
    server.shutdown()
    server.server_close()


def test_a_bucket_is_asked_in_its_own_region_whatever_this_machine_s_is(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, object_server
) -> None:
    import boto3

    host, port = object_server
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b")  # fmt: skip
    client.create_bucket(Bucket="frankfurt", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setattr(aws, "AMAZON", proxy.url)
    environment = {"AWS_REGION": "us-west-2"}
    assert aws.region("frankfurt", environment) == "eu-central-1"
    assert aws.region("frankfurt", environment) == "eu-central-1"
    assert [one.method for one in proxy.requests] == ["HEAD"], "asked once"
    assert aws.region("frankfurt", {aws.REGIONS_VARIABLE: "other=eu-west-1,frankfurt=eu-west-3"}) == "eu-west-3"
    monkeypatch.setattr(aws, "AMAZON", "http://127.0.0.1:9")
    assert aws.region("elsewhere", environment) == "us-west-2"
    assert aws.region("elsewhere", {}) == "us-east-1"


def test_an_endpoint_of_one_s_own_is_asked_and_its_region_is_what_is_stated(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text(FILE)
    monkeypatch.setenv("AWS_REGION", "auto")
    assert signed_as(proxy) == ("FILEKEY", "auto")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {proxy.url}\n")
    assert signed_as(proxy) == ("FILEKEY", "auto")
    assert aws.endpoint({"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b/"}) == "http://b"
