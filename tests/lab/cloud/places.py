"""Where the pretend cloud keeps its files and answers, and how its instances are asked for from this machine."""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

LAB = Path(os.environ.get("DOLPHIN_CLOUD_LAB", "/var/lib/dolphin-cloud"))
HOME, NODES, BIN, CACHE, WHEELS, TRAINER = (
    LAB / name for name in ("home", "nodes", "bin", "uv-cache", "wheels", "trainer")
)
PORT, API_PORT, NODE_API_PORT = 5081, 46681, 46682
URL = f"http://127.0.0.1:{PORT}"
"""EC2, S3, IAM and STS, and the lab's own commands below /lab/."""
INSTANCES = "/lab/instances"
REGION = "us-east-1"
"""Of the client's configuration, and of the jobs controller."""
KEY, SECRET = "AKIALABLABLABLABLAB", "lab-secret"
"""Nothing checks them; SkyPilot and the stores want some."""
SERVER, NODE = "tests.lab.cloud.aws", "tests.lab.cloud.node"
"""The modules that run as programs of their own."""


def address_of(number: int) -> str:
    """The public address of the cloud's n-th start of an instance: 127.0.10.2, 127.0.10.3, ..."""
    block, last = divmod(number, 250)
    return f"127.0.{10 + block}.{2 + last}"


def ask(path: str, **query: Any) -> list[dict[str, Any]]:
    """The cloud's answer to one of the lab's commands: its instances as they are then. OSError where it does not run."""
    words = f"?{urllib.parse.urlencode(query)}" if query else ""
    with urllib.request.urlopen(f"{URL}{path}{words}", timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found
