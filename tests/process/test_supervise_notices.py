"""Spot notices over real HTTP, from a small server that answers, refuses and fails as the clouds' own do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from trainer.supervise.spot_notices import Notice, wait_for_notice


class Metadata(ThreadingHTTPServer):
    """Both clouds' metadata services; `notice` after `quiet` polls."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.quiet, self.polls, self.tokens, self.fail_every = 3, 0, 0, 0
        self.absent = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        asked = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self.server.tokens += asked
        self._answer(200 if asked and not self.server.absent else 404, f"token-{self.server.tokens}")

    def do_GET(self) -> None:
        server = self.server
        server.polls += 1
        if server.absent:
            self._answer(404, "")
        elif server.fail_every and server.polls % server.fail_every == 0:
            self._answer(503, "")
        elif self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != f"token-{server.tokens}":
                self._answer(401, "")
            elif server.polls <= server.quiet:
                self._answer(404, "")
            else:
                self._answer(200, '{"action": "terminate", "time": "2026-01-01T00:00:00Z"}')
        elif self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google":
            self._answer(200, "FALSE" if server.polls <= server.quiet else "TRUE")
        else:
            self._answer(403, "")

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def poll(environment: dict[str, str]) -> Notice | None:
    return wait_for_notice(environment, sleep=lambda seconds: None)


@pytest.mark.parametrize("name", ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "DOLPHIN_AWS_METADATA"])
def test_a_notice_from_aws_is_seen_through_failing_answers(metadata: Metadata, name: str) -> None:
    metadata.fail_every = 2
    notice = poll({name: f"http://{metadata.address}/"})
    assert notice is not None
    assert notice.text.startswith('spot notice from AWS: {"action": "terminate", "time": "2026')
    assert notice.grace_s == 120
    assert metadata.polls > metadata.quiet
    assert metadata.tokens == 1


def test_an_expired_token_is_fetched_again(metadata: Metadata) -> None:
    def expire(_seconds: float) -> None:
        if metadata.polls == 1:
            metadata.tokens += 1  # the server knows only a newer one now

    notice = wait_for_notice({"DOLPHIN_AWS_METADATA": metadata.address}, sleep=expire)
    assert notice is not None
    assert metadata.tokens == 3


def test_a_notice_from_google_is_seen(metadata: Metadata) -> None:
    notice = poll({"GCE_METADATA_HOST": metadata.address})
    assert notice is not None
    assert notice.grace_s == 30
    assert metadata.polls == metadata.quiet + 1


def test_another_clouds_service_is_not_asked_for_ever(metadata: Metadata) -> None:
    metadata.absent = True
    assert poll({"DOLPHIN_AWS_METADATA": metadata.address, "GCE_METADATA_HOST": metadata.address}) is None
    assert metadata.polls <= 2


def test_nobody_is_asked_where_no_address_is_named_or_notices_are_off(metadata: Metadata) -> None:
    assert poll({}) is None
    assert poll({"DOLPHIN_NOTICES": "off", "DOLPHIN_AWS_METADATA": metadata.address}) is None
    assert metadata.polls == metadata.tokens == 0


def test_a_dead_address_ends_the_asking() -> None:
    assert poll({"DOLPHIN_AWS_METADATA": "127.0.0.1:9"}) is None
