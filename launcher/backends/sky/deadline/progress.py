"""How far a run is, as its node wrote it into the store: read where the jobs controller runs, whatever store it is.

Knows the three ways to a store and the file's fields; refuses to know what follows from them.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

FILE = "progress.json"
"""Below `run/` in a bucket; in the run's folder elsewhere."""
SSH_TIMEOUT_S = 60
SLURM = "slurm:"
"""`slurm:CLUSTER:/path`: a file that the cluster's login node sees."""
NUMBERS = ("time", "step", "reached", "total_steps", "seconds_a_step", "restart_s", "save_s", "spent_usd")
logger = logging.getLogger("sky.dolphin.deadline")


def read(where: str, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The file's numbers, and `left`: why a node gave the run back, where it did. None where it cannot be read from here, or is
    not there yet. `environment` are the job's variables, by which its nodes reach the store."""
    try:
        found = json.loads(_bytes(where, environment))
        return {name: found[name] for name in (*NUMBERS, "left") if found.get(name) is not None}
    except Exception as error:  # of whatever library the store has: a run must not end for want of a number
        logger.info(f"dolphin: no progress at {where}: {' '.join(str(error).split())[:200]}")
        return None


def _bytes(where: str, environment: Mapping[str, str]) -> bytes | str:
    url = urlsplit(where)
    if url.scheme == "s3":
        from sky.adaptors import aws

        options = {
            "endpoint_url": environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"),
            "aws_access_key_id": environment.get("AWS_ACCESS_KEY_ID"),
            "aws_secret_access_key": environment.get("AWS_SECRET_ACCESS_KEY"),
            "region_name": environment.get("AWS_REGION"),
        }
        client = aws.client("s3", **{name: value for name, value in options.items() if value})
        body: bytes = client.get_object(Bucket=url.netloc, Key=url.path.lstrip("/"))["Body"].read()
        return body
    if url.scheme == "gs":
        from sky.adaptors import gcp

        text: bytes = gcp.storage_client().bucket(url.netloc).blob(url.path.lstrip("/")).download_as_bytes()
        return text
    if where.startswith(SLURM):
        _, cluster, path = where.split(":", 2)
        command = [
            "ssh",
            "-F",
            os.path.expanduser("~/.slurm/config"),
            "-o",
            "BatchMode=yes",
            cluster,
            f"cat -- '{path}'",
        ]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=SSH_TIMEOUT_S, check=True)
        return done.stdout
    with open(os.path.expanduser(where), "rb") as handle:
        return handle.read()
