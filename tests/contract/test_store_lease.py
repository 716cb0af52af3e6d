"""Two nodes that write one run leave a journal of neither, and checkpoints of both: the lease lets one of them alone write."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support import object_stores
from tests.support.fault_proxy import FaultProxy, Request
from trainer.run.stores import lease as leases
from trainer.run.stores import object_store
from trainer.run.stores.base import Changed
from trainer.run.stores.lease import HeldElsewhere, Lease, holder_of
from trainer.run.stores.object_store import ObjectStore


@pytest.fixture
def proxy(object_server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(*object_server) as found:
        for name, value in object_stores.environment(found.url, retry_s=5).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(leases, "LOOK_EVERY_S", 0.01)
        monkeypatch.setattr(leases, "PATIENCE_S", 0.2)
        yield found


def lease(place: str, node: str) -> Lease:
    return Lease(ObjectStore(f"s3://bucket/{place}"), "demo-1", node, f"holder-of-{node}")


def test_a_second_node_waits_for_the_first_to_leave_and_is_told_where_it_stays(proxy: FaultProxy) -> None:
    first, second = lease("wait", "node-a"), lease("wait", "node-b")
    first.take(3)
    with pytest.raises(HeldElsewhere, match=r"node node-a writes this run \(attempt 3\)"):
        second.take(4)
    first.renew(3)
    held, age = holder_of(second.store) or pytest.fail("nobody")
    assert (held.node, held.attempt, held.run_id) == ("node-a", 3, "demo-1")
    assert 0 <= age <= 2
    first.release()
    second.take(4)
    with pytest.raises(HeldElsewhere):
        first.renew(3)
    with pytest.raises(HeldElsewhere):
        first.check()
    first.release()
    second.check()
    assert set(second.store.list("run")) == {leases.NAME}, "no clock is left"


def test_a_node_that_renews_no_more_is_taken_over_and_may_not_write_when_it_comes_back(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = lease("gone", "node-a"), lease("gone", "node-b")
    first.take(1)
    monkeypatch.setattr(leases, "LASTS_S", 1.0)
    monkeypatch.setattr(leases, "PATIENCE_S", 30)
    second.take(2)
    with pytest.raises(HeldElsewhere, match="node-b"):
        first.renew(1)


def test_of_nodes_that_begin_at_once_one_gets_the_run(proxy: FaultProxy) -> None:
    taken, told = [], []

    def begin(node: str) -> None:
        try:
            lease("at-once", node).take(1)
            taken.append(node)
        except HeldElsewhere:
            told.append(node)

    threads = [threading.Thread(target=begin, args=(f"node-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert len(told) == 3


def test_a_renewal_whose_answer_was_lost_is_a_renewal(proxy: FaultProxy) -> None:
    first = lease("lost", "node-a")
    first.take(1)
    left = [1]

    def lose(request: Request) -> str | None:
        if request.method == "PUT" and left[0]:
            left[0] -= 1
            return "lose-response"
        return None

    proxy.rule = lose
    first.renew(2)
    proxy.rule = lambda request: None
    first.check()
    assert json.loads(first.store.get(leases.NAME))["attempt"] == 2


def test_a_write_over_what_was_seen_is_refused_once_somebody_else_wrote(proxy: FaultProxy) -> None:
    store = ObjectStore("s3://bucket/over")
    store.put_over("x", b"1", None)
    seen = store.look("x")
    with pytest.raises(Changed):
        store.put_over("x", b"2", None)
    store.put_over("x", b"2", seen)
    with pytest.raises(Changed):
        store.put_over("x", b"3", seen)
    store.delete("x")
    with pytest.raises(Changed):
        store.put_over("x", b"3", seen)
    assert abs(seen.written_at - time.time()) < 60


def test_who_commits_a_checkpoint_asks_the_lease_of_its_own_start(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    first = lease("guard", "node-a")
    first.take(1)
    monkeypatch.setenv(leases.HOLDER_VARIABLE, first.holder)
    leases.guard("s3://bucket/guard")()
    monkeypatch.setenv(leases.HOLDER_VARIABLE, "other")
    with pytest.raises(HeldElsewhere):
        leases.guard("s3://bucket/guard")()
    leases.guard(str(tmp_path))()
    monkeypatch.delenv(leases.HOLDER_VARIABLE)
    leases.guard("s3://bucket/guard")()
