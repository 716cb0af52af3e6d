"""A node that takes a run over does not download the base from the hub again: it takes it from the bucket."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support import object_stores
from tests.support.data_job import data_job
from trainer.run.settings.checkpoint import CheckpointSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 100_000,
    "consolidated.safetensors": b"c" * 10,
    "README.md": b"x",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a model needs."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/me/base/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in HUB_FILES.items()
            ]
            found: bytes | None = json.dumps(tree).encode()
        elif path.startswith("/api/models/me/base"):
            found = json.dumps({"id": "me/base", "sha": COMMIT, "siblings": [{"rfilename": name} for name in HUB_FILES]}).encode()  # fmt: skip
        else:
            found = HUB_FILES.get(path.rpartition("/")[2])
            if self.command == "GET" and found is not None:
                self.asked.append(path.rpartition("/")[2])
        body = found if found is not None else b"{}"
        self.send_response(200 if found is not None else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD = _answer

    def log_message(self, *_: object) -> None:
        pass


BRING = """
import sys
from huggingface_hub import hf_hub_download
from trainer.data.kept_base import bring_base
from trainer.run.spec import NodeJob
bring_base(NodeJob.read(sys.argv[1]), print)
print(open(hf_hub_download("me/base", "model.safetensors"), "rb").read() == b"w" * 100_000)
"""


def test_a_base_of_the_hub_is_downloaded_once_for_all_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLPHIN_RUN_ID", "demo-1")  # as the supervisor has it
    (tmp_path / "data.jsonl").write_text("{}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def node(name: str) -> str:
        (tmp_path / name).mkdir()
        job = data_job(tmp_path / name, [{"path": str(tmp_path / "data.jsonl")}])
        changed = {
            "model": job.spec.model.model_copy(update={"base": "me/base"}),
            "checkpoint": CheckpointSpec(store="s3://bucket/base"),
        }
        job = job.model_copy(update={"spec": job.spec.model_copy(update=changed)})
        (tmp_path / name / "train.json").write_text(job.model_dump_json())
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / name / "hf"),
                       "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
        command = [sys.executable, "-c", BRING, str(tmp_path / name / "train.json")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    with object_stores.serving() as address:
        for variable, value in object_stores.environment("http://{}:{}".format(*address), retry_s=5).items():
            monkeypatch.setenv(variable, value)
        first = node("node-a")
        assert "base model kept in the bucket" in first
        assert sorted(Hub.asked) == ["config.json", "model.safetensors"], (
            "what transformers does not load is not fetched"
        )
        Hub.asked.clear()
        second = node("node-b")
        assert "base model taken from the bucket" in second
        assert second.strip().endswith("True")
        assert "model.safetensors" not in Hub.asked
    server.shutdown()
    server.server_close()
