"""A model comes home over a line that breaks: whole, from where it stopped, and without being held in memory."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.backends.sky import bucket_copy
from launcher.backends.sky.bucket_copy import copy_prefix
from launcher.runs.copying import Told, looked_on
from launcher.runs.errors import BackendError
from tests.support import object_stores
from tests.support.fault_proxy import FaultProxy, Request
from trainer.run.stores import object_store, ranges
from trainer.run.stores.object_store import ObjectStore

MEGABYTE = 1 << 20
SIZE = 200 * MEGABYTE
NUM_RANGES = SIZE // ranges.RANGE_BYTES
URL = "s3://bucket/run/model"


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shard") / "model-00001.safetensors"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture(scope="module")
def served(shard: Path) -> Iterator[tuple[str, int]]:
    with object_stores.serving() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in object_stores.environment("http://{}:{}".format(*address), retry_s=60).items():
            patch.setenv(name, value)
        store = ObjectStore(URL)
        store.put_file("model-00001.safetensors", shard)
        store.put("config.json", b"{}")
        yield address


@pytest.fixture
def proxy(served: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(*served) as found:
        for name, value in object_stores.environment(found.url, retry_s=20).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
        yield found


def of_the_shard(request: Request) -> bool:
    return request.method == "GET" and request.path.endswith("/model-00001.safetensors")


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_line_that_breaks_every_few_seconds_brings_the_model_home(
    proxy: FaultProxy, shard: Path, tmp_path: Path
) -> None:
    count = iter(range(10_000))
    proxy.rule = lambda request: "cut-response" if of_the_shard(request) and next(count) % 4 == 1 else None
    told: list[int] = []

    def see(one: Told) -> None:
        assert one.total == SIZE + 2
        told.append(one.arrived)

    with looked_on(see):
        copy_prefix(URL, tmp_path / "model")
    assert sha(tmp_path / "model" / "model-00001.safetensors") == sha(shard)
    assert len(proxy.faults) >= NUM_RANGES // 4
    assert told == sorted(told)
    assert told[-1] == SIZE + 2
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_what_arrived_before_a_failure_is_gone_on_from(proxy: FaultProxy, shard: Path, tmp_path: Path) -> None:
    count = iter(range(10_000))
    proxy.rule = lambda request: "403" if of_the_shard(request) and next(count) >= NUM_RANGES // 2 else None
    with pytest.raises(BackendError, match=r"what has arrived is kept in .* and the same command goes on from it"):
        copy_prefix(URL, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    before = len(proxy.requests)
    proxy.rule = lambda request: None
    copy_prefix(URL, tmp_path / "model")
    again = sum(of_the_shard(request) for request in proxy.requests[before:])
    assert again <= NUM_RANGES // 2 + ranges.NUM_AT_ONCE
    assert sha(tmp_path / "model" / "model-00001.safetensors") == sha(shard)


def test_a_model_that_was_replaced_in_between_is_not_glued_to_the_old_one(proxy: FaultProxy, tmp_path: Path) -> None:
    store, url = ObjectStore("s3://bucket/replaced"), "s3://bucket/replaced"
    store.put("weights", b"a" * 1000)
    store.put("z-last", b"z")
    proxy.rule = lambda request: "403" if request.path.endswith("/z-last") else None
    with pytest.raises(BackendError):
        copy_prefix(url, tmp_path / "model")
    proxy.rule = lambda request: None
    store.put("weights", b"b" * 1000)
    copy_prefix(url, tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_bytes() == b"b" * 1000


def test_names_that_lead_out_of_the_folder_are_refused(proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in (".fetch.json",):
        (tmp_path / "there" / name).write_text("{}")
        with pytest.raises(BackendError, match="is no name of a file"):
            copy_prefix(str(tmp_path / "there"), tmp_path / "model")
    assert [bucket_copy._leads_out(name) for name in ("../x", "/x", "a/../../x", "a//b", "a/b", "x")] == [True] * 4 + [False] * 2  # fmt: skip


def test_no_object_is_held_in_memory(proxy: FaultProxy, tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from launcher.backends.sky.bucket_copy import copy_prefix\n"
        "import obstore, botocore.session, trainer.run.stores.object_store\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"copy_prefix({URL!r}, Path(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], env={**os.environ, "PYTHONPATH": root}, capture_output=True,
        text=True, check=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) * 1024 < 0.8 * SIZE
