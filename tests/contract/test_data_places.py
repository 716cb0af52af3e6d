"""Data that lies elsewhere gives the same tokens as the same file here: S3 and Google Cloud Storage over real HTTP, and the
hub's own protocol. A source that is quietly read in another order is another data set."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.support import object_stores
from tests.support.data_job import chat, data_job, write_rows
from tests.support.fault_proxy import FaultProxy
from trainer.data import hub
from trainer.data.prepare import prepare
from trainer.data.prepared import Prepared
from trainer.data.readers import blocks
from trainer.run.exits import BadInput
from trainer.run.settings.data import SourceSpec

ROWS = [chat(f"question {i}", f"answer {i} ça va 🐬") for i in range(30)]


@pytest.fixture(scope="module")
def bucket(object_server: tuple[str, int]) -> Iterator[Any]:
    import boto3

    with FaultProxy(*object_server) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in object_stores.environment(proxy.url, retry_s=5).items():
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        yield boto3.client("s3", region_name="us-east-1", endpoint_url=proxy.url)


@dataclass(frozen=True)
class Mix:
    """Rows that lie in a bucket as several files, and what the same rows in one local file give."""

    tokenizer: Path
    expected: Prepared


@pytest.fixture(scope="module")
def mix(bucket: Any, tmp_path_factory: pytest.TempPathFactory) -> Mix:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("mix")
    local = write_rows(root / "all.jsonl", ROWS)
    lines = local.read_bytes().splitlines(keepends=True)
    pq.write_table(pa.Table.from_pylist(ROWS[20:]), root / "c.parquet")
    objects = {
        "mix/a.jsonl.gz": gzip.compress(b"".join(lines[:10])),
        "mix/b.jsonl": b"".join(lines[10:20]),
        "mix/c.parquet": (root / "c.parquet").read_bytes(),
        "mix/README.md": b"no data",
        "mixed/other.jsonl": lines[0],
    }
    for name, content in objects.items():
        bucket.put_object(Bucket="bucket", Key=name, Body=content)
    expected = prepare(data_job(root, local))
    return Mix(root / "tokenizer", expected)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("path", ["mix/", "mix", "mix/*", "mix/*.gz"])
def test_objects_give_the_tokens_of_the_same_files(mix: Mix, tmp_path: Path, scheme: str, path: str) -> None:
    data = prepare(data_job(tmp_path, [{"path": f"{scheme}://bucket/{path}"}], tokenizer=mix.tokenizer))
    count = 10 if path.endswith(".gz") else 30
    assert len(data.train) == count
    assert np.array_equal(data.tokens, mix.expected.tokens[: mix.expected.offsets[count]])
    assert data.name_of(0) == f"{scheme}://bucket/mix/a.jsonl.gz:1"


def test_a_changed_object_is_noticed_and_a_missing_one_is_named(bucket: Any, tmp_path: Path) -> None:
    keys = []
    for number in range(2):
        line = json.dumps(chat("q", f"answer {number}")).encode()
        bucket.put_object(Bucket="bucket", Key="one.jsonl", Body=line + b"\n")
        keys.append(prepare(data_job(tmp_path, [{"path": "s3://bucket/one.jsonl"}], name=f"run{number}")).key)
    assert keys[0] != keys[1]
    with pytest.raises(BadInput, match=r"data\.sources\[0\] s3://bucket/absent: there is nothing there"):
        prepare(data_job(tmp_path, [{"path": "s3://bucket/absent"}]))
    with pytest.raises(BadInput, match="unknown scheme ftp://"):
        prepare(data_job(tmp_path, [{"path": "ftp://bucket/absent"}]))
    with pytest.raises(BadInput, match="cannot be listed"):
        prepare(data_job(tmp_path, [{"path": "s3://no-such-bucket/x.jsonl"}]))


SHA = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as a dataset of two Parquet files needs; one is of another kind, which nobody wants by accident."""

    contents: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(json.dumps([self._file(name) for name in self.contents if name in asked.get("paths", ())]).encode())

    def _file(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(self.contents[name]), "oid": "0" * 40}

    def _answer(self, _: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/datasets/someone/sea/tree/"):
            self._send(json.dumps([self._file(name) for name in self.contents]).encode())
        elif path in ("/api/datasets/someone/sea", f"/api/datasets/someone/sea/revision/{SHA}"):
            siblings = [{"rfilename": name} for name in self.contents]
            info = {"id": "someone/sea", "sha": SHA, "siblings": siblings, "tags": []}
            self._send(json.dumps(info).encode())
        elif (name := path.removeprefix(f"/datasets/someone/sea/resolve/{SHA}/")) in self.contents:
            self._send(self.contents[name])
        elif path.startswith("/datasets/someone/sea/"):
            self._send(b'{"error": "Entry not found"}', 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        wanted = self.headers.get("Range")
        total = len(body)
        if wanted and status == 200:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or total - 1), total - 1)
            body, status = body[start : end + 1], 206
            headers = {"Content-Range": f"bytes {start}-{end}/{total}"}
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "X-Repo-Commit": SHA,
            "ETag": '"1"',
            "Accept-Ranges": "bytes",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def local_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, rows in (("train.parquet", ROWS), ("best.parquet", ROWS[:3])):
        parquet = tmp_path_factory.mktemp("hub") / name
        pq.write_table(pa.Table.from_pylist(rows), parquet)
        _Hub.contents[name] = parquet.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from trainer.data import hub
from trainer.run.exits import BadInput, leave
from trainer.run.settings.data import SourceSpec
try:
    files = hub.files_of(SourceSpec(path=sys.argv[1], files=tuple(sys.argv[2:])), "data.sources[0]")
    rows = [row for block in hub.blocks(files[0]) for row in block.read()]
    import datasets
    assert not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, "data sets are named to a server of the library's"
    print(json.dumps({"tag": files[0].tag, "key": files[0].key, "rows": rows}))
except BadInput as error:
    print(json.dumps({"error": str(error)}))
leave(0)  # as trainer.data.prepare ends
"""


def ask_hub(endpoint: str, path: str, home: Path, *files: str, **extra: str) -> dict[str, Any]:
    """In a process of its own: the hub's library reads its endpoint when it is imported."""
    import os
    import subprocess
    import sys

    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"} | extra
    # Left alone, the library loads torch to read rows.
    environment |= {"USE_TORCH": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, *files], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_hub_dataset_is_streamed_and_known_by_its_commit(local_hub: str, tmp_path: Path) -> None:
    answer = ask_hub(local_hub, "hf://someone/sea", tmp_path / "home")
    assert answer == {"tag": SHA, "key": "someone/sea  train", "rows": ROWS}


def test_of_a_hub_dataset_the_files_that_are_named_are_read_and_no_other(local_hub: str, tmp_path: Path) -> None:
    answer = ask_hub(local_hub, "hf://someone/sea", tmp_path / "home", "be*.parquet")
    assert answer == {"tag": SHA, "key": "someone/sea  train be*.parquet", "rows": ROWS[:3]}
    absent = ask_hub(local_hub, "hf://someone/sea", tmp_path / "home", "worst.parquet")["error"]
    assert "worst.parquet" in absent
    assert "\n" not in absent


def test_a_hub_dataset_that_is_not_there_or_not_reachable_is_an_error_of_one_line(
    local_hub: str, tmp_path: Path
) -> None:
    absent = ask_hub(local_hub, "hf://someone/else", tmp_path / "home")["error"]
    assert "the hub says" in absent
    assert "HF_TOKEN" in absent
    offline = ask_hub(local_hub, "hf://someone/sea", tmp_path / "home", HF_HUB_OFFLINE="1")["error"]
    assert "the hub cannot be reached" in offline
    assert "\n" not in absent + offline


def test_hub_names_are_checked_before_anything_is_asked() -> None:
    with pytest.raises(BadInput, match="write hf://owner/name"):
        hub.files_of(SourceSpec(path="hf://a/b/c/d"), "it")


def test_blocks_of_a_local_file_are_ranges_that_a_worker_reads_itself(tmp_path: Path) -> None:
    from trainer.data.inputs import files_of

    [file] = files_of(SourceSpec(path=str(write_rows(tmp_path / "a.jsonl", ROWS))), "it")
    assert all(block.byte_range is not None and block.lines is None for block in blocks(file))
