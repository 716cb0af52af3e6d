# ruff: noqa: RET503 - an answer is sent, not returned
"""A hub of models on this machine: the part of the hub's API that a push uses, over real HTTP, with what it takes kept on disk.

Makes repositories, says which files are large, takes large ones by their hash (and refuses one that is cut), commits, lists. It dies
where a test says so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

TOKEN = "hf_of_the_test_alone"
LFS_SUFFIXES = (".safetensors", ".gguf", "tokenizer.json")


class Hub:
    """Serves on loopback until `close`. `requests` are method and path of all that were answered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = folder / "objects"
        self.objects.mkdir(parents=True)
        self.repos: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.dies_after_uploads: int | None = None
        """From then on every upload and commit ends without an answer."""
        self.cuts_uploads = False
        """Keeps all but the last byte, and says that all is well."""
        self.uploads = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to take it for the hub."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def content(self, repo: str, path: str) -> bytes:
        entry = self.repos[repo]["files"][path]
        return (self.objects / (entry["lfs"]["oid"] if "lfs" in entry else entry["oid"])).read_bytes()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        hub, body = self.hub, self._body()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            given = json.loads(body)
            repo = "/".join(filter(None, (given.get("organization"), given["name"])))
            if not repo.startswith("my-org/"):
                return self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            if repo in hub.repos:
                return self._answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{repo}"})
            is_private = given.get("private") or given.get("visibility") == "private"
            hub.repos[repo] = {"files": {}, "private": bool(is_private), "commits": []}
            return self._answer(200, {"url": f"{hub.url}/{repo}", "id": repo})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._answer(
                200, {"transfer": "basic", "objects": [self._object(o) for o in json.loads(body)["objects"]]}
            )
        repo = "/".join(path.split("/")[3:5])
        if repo not in hub.repos:
            return self._answer(404, {"error": "Repository not found"})
        if "/preupload/" in path:
            return self._answer(200, {"files": [self._mode(file) for file in json.loads(body)["files"]]})
        if "/commit/" in path:
            return self._commit(repo, [json.loads(line) for line in body.splitlines() if line])
        return self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        body, oid = self._body(), self.path.rpartition("/")[2]
        self.hub.uploads += 1
        if self._is_dead():
            return None
        if self.hub.cuts_uploads:
            body = body[:-1]
        elif hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "the hash is another"})
        (self.hub.objects / oid).write_bytes(body)
        self._answer(200, {})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        parts = path.split("/")
        repo = "/".join(parts[3:5])
        if repo not in self.hub.repos:
            return self._answer(404, {"error": "Repository not found"})
        held = self.hub.repos[repo]
        if "/tree/" in path:
            return self._answer(200, [{"type": "file", "path": name, **entry} for name, entry in held["files"].items()])
        sha = hashlib.sha1(str(len(held["commits"])).encode()).hexdigest()
        siblings = [{"rfilename": name} for name in held["files"]]
        self._answer(
            200, {"_id": "1", "id": repo, "modelId": repo, "sha": sha, "private": held["private"], "siblings": siblings}
        )

    def log_message(self, format: str, *arguments: Any) -> None:
        self.hub.requests.append(f"{self.command} {self.path.partition('?')[0]}")

    def _validate(self, given: dict[str, Any]) -> None:
        """The hub refuses a card whose head it cannot read, or that lacks what every result must name."""
        parts = given["content"].split("---\n")
        try:
            head = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
            for model in head.get("model-index", []):
                for result in model["results"]:
                    assert result["task"]["type"]
                    assert result["dataset"]["type"]
                    assert all("type" in metric and "value" in metric for metric in result["metrics"])
        except (yaml.YAMLError, KeyError, AssertionError, AttributeError) as error:
            return self._answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        self._answer(200, {"errors": [], "warnings": []})

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if (self.hub.objects / wanted["oid"]).exists():
            return {"oid": wanted["oid"], "size": wanted["size"]}
        href = f"{self.hub.url}/upload/{wanted['oid']}"
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        if self._is_dead():
            return
        files = self.hub.repos[repo]["files"]
        for line in lines:
            value = line["value"]
            if line["key"] == "lfsFile":
                size = (self.hub.objects / value["oid"]).stat().st_size
                pointer = hashlib.sha1(value["oid"].encode()).hexdigest()
                files[value["path"]] = {
                    "oid": pointer,
                    "size": size,
                    "lfs": {"oid": value["oid"], "size": size, "pointerSize": 130},
                }
            elif line["key"] == "file":
                content = base64.b64decode(value["content"])
                oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                (self.hub.objects / oid).write_bytes(content)
                files[value["path"]] = {"oid": oid, "size": len(content)}
        self.hub.repos[repo]["commits"].append([line["value"].get("path") for line in lines if line["key"] != "header"])
        number = len(self.hub.repos[repo]["commits"])
        self._answer(
            200,
            {
                "success": True,
                "commitOid": hashlib.sha1(b"%d" % number).hexdigest(),
                "commitUrl": f"{self.hub.url}/{repo}/commit/{number}",
            },
        )

    def _is_dead(self) -> bool:
        limit = self.hub.dies_after_uploads
        if limit is None or self.hub.uploads <= limit:
            return False
        self.close_connection = True
        self.connection.close()
        return True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status in (401, 403, 404):
            self.send_header("X-Error-Message", value.get("error", "") if isinstance(value, dict) else "")
        self.end_headers()
        self.wfile.write(content)
