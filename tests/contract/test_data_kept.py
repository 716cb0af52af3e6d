"""A node that takes a run over does not prepare the data again: it takes them from the bucket, checked as if made here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import object_stores
from tests.support.data_job import data_job
from tests.support.fault_proxy import FaultProxy
from trainer.data import kept
from trainer.data import prepare as preparing
from trainer.data.prepare import prepare
from trainer.run.settings.checkpoint import CheckpointSpec
from trainer.run.spec import NodeJob
from trainer.run.stores import object_store
from trainer.run.stores.base import StoreError
from trainer.run.stores.kept_folder import WHOLE, publish, take
from trainer.run.stores.object_store import ObjectStore


@pytest.fixture
def proxy(object_server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(*object_server) as found:
        for name, value in object_stores.environment(found.url, retry_s=1).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(kept, "PATIENCE_S", 0.2)
        monkeypatch.setenv("DOLPHIN_RUN_ID", "demo-1")  # as the supervisor has it
        yield found


def job_on(node: Path, place: str, data: Path) -> NodeJob:
    node.mkdir()
    job = data_job(node, [{"path": str(data)}])
    store = CheckpointSpec(store=f"s3://bucket/{place}")
    return job.model_copy(update={"spec": job.spec.model_copy(update={"checkpoint": store})})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 40)
    return path


def never(*_: object) -> None:
    pytest.fail("the data was prepared again")


def test_the_second_node_takes_what_the_first_one_made(
    proxy: FaultProxy, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(job_on(tmp_path / "node-a", "warm", data))
    assert "prepared data kept in the bucket" in capsys.readouterr().err
    monkeypatch.setattr(preparing, "build", never)
    second = prepare(job_on(tmp_path / "node-b", "warm", data))
    assert "prepared data taken from the bucket" in capsys.readouterr().err
    assert (second.key, len(second.train)) == (first.key, len(first.train))
    assert np.array_equal(second.tokens, first.tokens)


def test_data_that_are_looked_at_without_a_run_go_nowhere(
    proxy: FaultProxy, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DOLPHIN_RUN_ID")
    prepare(job_on(tmp_path / "home", "looked-at", data))
    assert proxy.requests == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "not-whole", "refused"])
def test_what_the_bucket_has_wrong_is_made_again(
    proxy: FaultProxy, data: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"warm-{damage}"
    first = prepare(job_on(tmp_path / "node-a", place, data))
    store = ObjectStore(f"s3://bucket/{place}/cache/data/{first.key}")
    tokens = store.get("tokens.bin")
    if damage == "flipped":
        store.put("tokens.bin", bytes([tokens[0] ^ 1]) + tokens[1:])
    if damage == "cut":
        store.put("tokens.bin", tokens[:-1])
    if damage == "not-whole":
        store.delete(WHOLE)
    if damage == "refused":
        proxy.rule = lambda request: "403" if "/cache/data/" in request.path else None
    second = prepare(job_on(tmp_path / "node-b", place, data))
    assert np.array_equal(second.tokens, first.tokens)
    said = {"flipped": "is damaged", "cut": "bytes came of", "not-whole": "kept in the bucket", "refused": "refuses"}
    assert said[damage] in capsys.readouterr().err
    proxy.rule = lambda request: None
    prepare(job_on(tmp_path / "node-c", place, data))
    assert "prepared data taken from the bucket" in capsys.readouterr().err, "each later node would make it again"
    assert not list((tmp_path / "node-b").rglob("*.tmp-taken"))


def test_a_list_that_names_a_file_elsewhere_writes_none(proxy: FaultProxy, tmp_path: Path) -> None:
    store = ObjectStore("s3://bucket/evil")
    store.put(f"x/{WHOLE}", b'{"../../evil": 1}')
    with pytest.raises(StoreError, match="is no file below a folder"):
        take(store, "x", tmp_path / "entry")
    assert not (tmp_path / "entry").exists()
    assert take(store, "absent", tmp_path / "entry") is None
    (tmp_path / "one").write_text("1")
    assert publish(store, "y", tmp_path, ["one"]) == 1
    assert publish(store, "y", tmp_path, ["one"]) == 0, "it is there"
