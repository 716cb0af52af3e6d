"""Every place that keeps checkpoints keeps the same promises: a folder, S3 over real HTTP, Google's API over real HTTP.

The two object stores are one server (tests/support/object_stores.py) behind a proxy that can be told to misbehave.
"""

import errno
import os
import socket
import subprocess
import sys

import pytest

from tests.support import object_stores
from tests.support.away_folder import away
from tests.support.fault_proxy import FaultProxy
from trainer.run.exits import BadInput, StoreGone
from trainer.run.stores import base, object_store
from trainer.run.stores.base import FolderStore, NotInStore, StoreError, StoreRefused
from trainer.run.stores.opening import open_store, probe

KINDS = ("folder", "s3", "gcs")
OBJECT_STORES = ("s3", "gcs")
MEGABYTE = 1 << 20
PART = 5 * MEGABYTE
"""The least that S3 takes; large enough to be cut off while it is sent."""
SIZE = 2 * PART + MEGABYTE // 8


@pytest.fixture
def proxy(object_server, monkeypatch):
    with FaultProxy(*object_server) as found:
        for name, value in object_stores.environment(found.url, retry_s=20).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        for module in (base, object_store):
            monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
        yield found


@pytest.fixture
def make(request, tmp_path, proxy):
    """Open the store of this test, at a prefix of its own."""
    prefix = f"{request.node.name.replace('[', '-').replace(']', '')}/run-1/checkpoints"

    def build(kind):
        return open_store(
            {"folder": str(tmp_path / prefix), "s3": f"s3://bucket/{prefix}", "gcs": f"gs://bucket/{prefix}"}[kind]
        )

    return build


@pytest.fixture(scope="module")
def random_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("random") / "large.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def large(random_file, monkeypatch):
    """Three parts of an upload."""
    monkeypatch.setattr(object_store, "PART_BYTES", PART)
    return random_file


def after(count, fault, wanted):
    """Misbehave `count` times on requests that `wanted` picks."""
    left = [count]

    def rule(request):
        if left[0] and wanted(request):
            left[0] -= 1
            return fault
        return None

    return rule


def is_part(request):
    return request.method == "PUT" and "partNumber" in request.path


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_put_is_there_and_can_be_read_in_parts(make, kind, large):
    store = make(kind)
    assert store.list() == {}
    store.put("step-00000001/manifest.json", b"{}")
    store.put_file("step-00000001/shard", large)
    store.put("step-00000002/manifest.json", b"second")
    assert store.list("step-00000001") == {"step-00000001/manifest.json": 2, "step-00000001/shard": SIZE}
    assert len(store.list()) == 3
    assert store.get("step-00000002/manifest.json") == b"second"
    content = large.read_bytes()
    assert store.get_range("step-00000001/shard", PART - 3, 9) == content[PART - 3 :][:9]
    assert store.get_range("step-00000001/shard", SIZE - 4, 100) == content[-4:]
    assert store.get("step-00000001/shard") == content


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_replaced_whole_and_deleted_once_and_for_all(make, kind):
    store = make(kind)
    store.put("a/b", b"first, and longer")
    store.put("a/b", b"second")
    assert store.get("a/b") == b"second"
    store.delete("a/b")
    store.delete("a/b")
    assert store.list() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_is_told_from_a_store_that_does_not_answer(make, kind):
    store = make(kind)
    with pytest.raises(NotInStore):
        store.get("step-00000001/manifest.json")
    with pytest.raises(NotInStore):
        store.get_range("step-00000001/shard", 0, 4)
    assert store.list("step-00000001") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_leaves_nothing_behind(make, kind):
    store = make(kind)
    probe(store)
    assert store.list() == {}


@pytest.mark.parametrize("kind", OBJECT_STORES)
def test_a_bucket_that_does_not_exist_is_found_before_the_model_loads(proxy, kind):
    scheme = {"s3": "s3", "gcs": "gs"}[kind]
    with pytest.raises(BadInput, match=rf"checkpoint.store {scheme}://nowhere/x: there is no such bucket"):
        probe(open_store(f"{scheme}://nowhere/x"))


@pytest.mark.parametrize("kind", OBJECT_STORES)
def test_credentials_that_are_refused_are_said_to_be(make, proxy, kind):
    proxy.rule = after(100, "403", lambda request: request.method == "PUT")
    with pytest.raises(BadInput, match="the store refuses these credentials") as caught:
        probe(make(kind))
    assert "AKIATEST" not in str(caught.value)


def test_an_unknown_scheme_is_not_taken_for_a_folder():
    with pytest.raises(BadInput, match="unknown scheme ftp://"):
        open_store("ftp://host/folder")


@pytest.mark.parametrize("kind", OBJECT_STORES)
@pytest.mark.parametrize("fault", ["503", "cut-request", "lose-response", "cut-response"])
def test_an_upload_survives(make, proxy, kind, fault, large):
    """... 503s and connections that break while a part is under way, is done, or is being acknowledged."""
    store = make(kind)
    proxy.rule = after(2, fault, is_part)
    store.put_file("shard", large)
    assert [what for what, _ in proxy.faults] == [fault, fault]
    assert store.get("shard") == large.read_bytes()
    sent = sum(request.length for request in proxy.requests if is_part(request))
    assert sent <= SIZE + 2 * PART  # only what was lost is sent again


def test_a_part_that_is_never_answered_is_sent_again(make, proxy, large, monkeypatch):
    monkeypatch.setenv("DOLPHIN_STORE_REQUEST_S", "2")
    store = make("s3")
    proxy.rule = after(1, "silence", is_part)
    store.put_file("shard", large)
    assert proxy.faults
    assert store.get("shard") == large.read_bytes()


@pytest.mark.parametrize("kind", OBJECT_STORES)
@pytest.mark.parametrize("fault", ["503", "cut-response"])
def test_a_download_survives(make, proxy, kind, fault):
    store = make(kind)
    store.put("shard", os.urandom(MEGABYTE))
    whole = store.get("shard")
    proxy.rule = after(2, fault, lambda request: request.method == "GET")
    assert store.get_range("shard", 1000, 500_000) == whole[1000:501_000]
    assert proxy.faults


def test_a_store_that_stays_away_ends_in_an_error_that_says_so(make, proxy, monkeypatch):
    monkeypatch.setenv("DOLPHIN_STORE_RETRY_S", "0.3")
    store = make("s3")
    proxy.rule = after(1000, "503", lambda request: True)
    with pytest.raises(StoreError, match="503") as caught:
        store.put("name", b"data")
    assert not isinstance(caught.value, NotInStore)
    assert len(str(caught.value)) < 600


def test_a_client_that_waits_to_be_asked_for_the_body_is_asked(proxy):
    """As Amazon's does before each put. One that is not asked sends the body a second later: slow, and no test fails."""
    with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])), timeout=60) as client:
        answers = client.makefile("rb")
        client.sendall(
            b"PUT /bucket/asked HTTP/1.1\r\nHost: bucket\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answers.readline() == b"\r\n"
        client.sendall(b"body")
        assert answers.readline().startswith(b"HTTP/1.1 200 ")
    assert open_store("s3://bucket").get("asked") == b"body"


def test_a_writer_that_dies_leaves_nothing_that_could_be_taken_for_a_file(tmp_path):
    store = FolderStore(tmp_path)
    store.put("step-00000001/shard", b"old")
    code = (
        "import os, signal; from pathlib import Path; from trainer.run.stores.base import FolderStore\n"
        "def die(handle): handle.write(b'half of the new'); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"FolderStore(Path({str(tmp_path)!r})).write('step-00000001/shard', die)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(list((tmp_path / "step-00000001").iterdir())) == 2
    assert store.list() == {"step-00000001/shard": 3}
    assert store.get("step-00000001/shard") == b"old"
    store.remove_leftovers()
    assert len(list((tmp_path / "step-00000001").iterdir())) == 1


def test_a_full_disk_is_called_by_its_name(tmp_path):
    """With the file size limit of the process in place of the disk's: the same error path, without root."""
    code = (
        "import resource, signal; from pathlib import Path; from trainer.run.stores.base import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"store = FolderStore(Path({str(tmp_path)!r}))\n"
        "try: store.put('shard', bytes(1000))\n"
        "except StoreError as error: print(error, store.list())\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "the file is larger than this process may write {}" in out


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk_too(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=False, capture_output=True
    ).returncode:
        pytest.skip("this machine does not let a small disk be mounted")
    try:
        store = FolderStore(tmp_path)
        with pytest.raises(StoreError, match=r"the disk of .* is full"):
            store.put("shard", bytes(MEGABYTE))
        assert store.list() == {}
        assert list(tmp_path.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(BadInput, match="the file system is read-only"):
            probe(store)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


OPERATIONS = {
    "list": lambda store, path: store.list(),
    "entries": lambda store, path: store.entries(),
    "get": lambda store, path: store.get("there"),
    "get_range": lambda store, path: store.get_range("there", 0, 4),
    "put": lambda store, path: store.put("new", b"x" * 5000),
    "put_file": lambda store, path: store.put_file("large", path),
    "delete": lambda store, path: store.delete("there"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", OBJECT_STORES)
def test_an_answer_that_is_cut_off_is_asked_for_again(make, proxy, kind, operation, large):
    """One cut connection in a bucket's listing once ended a run for good: the library repeats requests, not answers."""
    store = make(kind)
    store.put("there", b"whole" * 1000)
    for number in range(40 if operation in ("list", "entries") else 0):
        store.put(f"more/{number:04d}", b"x")
    left = [2]

    def cut(request):
        left[0] -= 1
        return "cut-response" if left[0] >= 0 else None

    proxy.rule = cut
    OPERATIONS[operation](store, large)
    assert [fault for fault, _ in proxy.faults] == ["cut-response"] * 2
    proxy.rule = lambda request: None
    if operation == "put_file":
        assert store.list()["large"] == SIZE
    if operation == "list":
        assert len(store.list()) == 41


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault, said", [("expired", "the token of these credentials has expired"), ("403", "the store refuses these credentials")])  # fmt: skip
def test_what_asking_again_cannot_mend_is_one_line_at_once(make, proxy, operation, fault, said, large):
    store = make("s3")
    store.put("there", b"whole")
    proxy.rule = lambda request: fault
    before = len(proxy.requests)
    with pytest.raises(StoreRefused) as refusal:
        OPERATIONS[operation](store, large)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(proxy.requests) - before <= 12, "it was asked again and again"


@pytest.mark.parametrize("operation", ["list", "get", "put", "put_file"])
def test_a_bucket_that_was_removed_meanwhile_is_one_line(proxy, operation, large):
    store = open_store("s3://removed/run-1/checkpoints")
    with pytest.raises(StoreRefused, match=r"there is no such bucket$"):
        OPERATIONS[operation](store, large)


PASSING = {
    "EIO": errno.EIO,
    "ESTALE": errno.ESTALE,
    "ENOTCONN": errno.ENOTCONN,
    "ETIMEDOUT": errno.ETIMEDOUT,
    "EROFS": errno.EROFS,
}


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("operation", sorted(OPERATIONS.keys() - {"entries"}))
def test_a_shared_folder_that_is_away_for_a_moment_is_asked_again(make, monkeypatch, operation, name, tmp_path):
    """A file server fails over in seconds; the first of these errors once ended the run."""
    monkeypatch.setattr(base, "FIRST_PAUSE_S", 0.001)
    store = make("folder")
    store.put("there", b"whole" * 1000)
    (tmp_path / "large").write_bytes(b"y" * 5000)
    with away(store.root, PASSING[name], PASSING[name]) as left:
        OPERATIONS[operation](store, tmp_path / "large")
        assert left == []
    sizes = {"put": {"new": 5000}, "put_file": {"large": 5000}, "delete": {}}
    there = {} if operation == "delete" else {"there": 5000}
    assert store.list() == there | sizes.get(operation, {})
    assert len(list(store.root.iterdir())) == len(store.list()), "something half-written is left"


@pytest.mark.parametrize("name", PASSING)
def test_a_shared_folder_that_stays_away_is_told_from_one_that_refuses(make, monkeypatch, name):
    monkeypatch.setenv("DOLPHIN_STORE_RETRY_S", "0.01")
    store = make("folder")
    store.put("there", b"whole")
    with away(store.root, *[PASSING[name]] * 20), pytest.raises(base.StoreAway) as caught:
        store.get("there")
    assert str(caught.value).startswith(f"{store.root}/there: ")
    with away(store.root, *[PASSING[name]] * 200), pytest.raises(StoreGone, match="does not answer"):
        probe(store, is_first=False)
    with away(store.root, errno.EACCES) as left, pytest.raises(StoreError, match="permission denied") as refused:
        store.get("there")
    assert not isinstance(refused.value, base.StoreAway)
    assert left == []
