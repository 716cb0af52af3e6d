"""The metadata service of one instance, IMDSv2, at port 80 of the instance's public address: 169.254.169.254 from inside it."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.lab.cloud.places import KEY, SECRET

_ROLE = "skypilot-v1"
_TOKEN = "lab-token"


def serve(instance: Any, address: str) -> ThreadingHTTPServer:
    service = ThreadingHTTPServer((address, 80), type("Of", (Metadata,), {"instance": instance}))
    threading.Thread(target=service.serve_forever, daemon=True).start()
    return service


def in_words(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


class Metadata(BaseHTTPRequestHandler):
    instance: Any
    """moto's; `lab_notice` is the time at which it will be reclaimed, where there is a notice."""
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self._answer(_TOKEN if self.path == "/latest/api/token" else None)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != _TOKEN:
            self._answer("", 401)
            return
        one = self.instance
        if self.path.rstrip("/") == "/latest/dynamic/instance-identity/document":
            self._answer(json.dumps({
                "instanceId": one.id, "region": one.region_name, "availabilityZone": one.availability_zone,
                "instanceType": one.instance_type,
            }))  # fmt: skip
            return
        self._answer(self._facts().get(self.path.removeprefix("/latest/meta-data/")))

    def _facts(self) -> dict[str, str | None]:
        one, notice = self.instance, getattr(self.instance, "lab_notice", None)
        now = datetime.now(UTC)
        keys = {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": KEY, "SecretAccessKey": SECRET, "Token": "lab",
                "LastUpdated": in_words(now), "Expiration": in_words(now + timedelta(hours=6))}  # fmt: skip
        return {
            "instance-id": one.id, "instance-type": one.instance_type, "local-ipv4": one.private_ip, "public-ipv4": one.lab_address,
            "placement/availability-zone": one.availability_zone, "placement/region": one.region_name, "ami-id": one.image_id,
            "instance-life-cycle": one.lifecycle or "on-demand", "iam/security-credentials/": _ROLE,
            f"iam/security-credentials/{_ROLE}": json.dumps(keys), "hostname": one.private_dns_name,
            "spot/instance-action": notice and json.dumps({"action": "terminate", "time": notice}), "spot/termination-time": notice,
        }  # fmt: skip

    def _answer(self, text: str | None, status: int = 200) -> None:
        body = (text or "").encode()
        self.send_response(404 if text is None else status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
