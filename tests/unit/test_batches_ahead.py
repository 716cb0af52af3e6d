"""Batches that are made ahead are the same ones, in the same order, and never on another rank's GPU.

A batch that is one place off trains on other data than the checkpoint says; a page-locked copy made by a thread that never
chose its GPU opens a context on the first one, for every rank of the node.
"""

from __future__ import annotations

import pytest
import torch

from trainer.data.batch import IGNORE, Batch
from trainer.rank.ahead import Ahead

CPU = torch.device("cpu")


def numbered(number: int) -> Batch:
    ids = torch.full((2, 4), number)
    return Batch.of(
        ids, ids, torch.ones(2, 4), torch.arange(4).expand(2, 4), torch.tensor([0, 4, 8], dtype=torch.int32)
    )


def test_batches_come_in_their_order_and_no_more_than_one_is_made_ahead() -> None:
    made: list[int] = []

    def make(number: int) -> Batch:
        made.append(number)
        return numbered(number)

    seen = []
    for batch in Ahead(range(5), make, CPU):
        seen.append(int(batch.ids_BT[0, 0]))
        assert len(made) <= len(seen) + 1
    assert seen == made == [0, 1, 2, 3, 4]
    assert list(Ahead(range(0), make, CPU)) == []


def test_a_batch_that_cannot_be_made_ends_the_run_where_it_is_due() -> None:
    def make(number: int) -> Batch:
        if number == 2:
            raise OSError("the prepared data is gone")
        return numbered(number)

    batches = Ahead(range(4), make, CPU)
    assert [int(next(batches).ids_BT[0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="is gone"):
        next(batches)


def test_the_thread_takes_its_ranks_gpu_before_it_locks_any_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(f"set_device {device}"))
    monkeypatch.setattr(Batch, "pinned", lambda self: (calls.append("pin"), self)[1])
    assert len(list(Ahead(range(2), numbered, torch.device("cuda", 3)))) == 2
    assert calls == ["set_device 3", "pin", "pin"]


def test_a_batch_knows_where_its_labels_are() -> None:
    labels = torch.tensor([[7, IGNORE, 5, IGNORE], [IGNORE] * 4, [IGNORE, IGNORE, IGNORE, 1]])
    bounds = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    batch = Batch.of(labels, labels, (labels != IGNORE).float(), torch.arange(4).expand(3, 4), bounds)
    assert batch.labelled_N.tolist() == [0, 2, 11]
    assert batch.row_ends == (3, 0, 4)
    assert batch.max_seqlen == 4
    moved = batch.to("cpu")
    assert torch.equal(moved.labelled_N, batch.labelled_N)
    assert moved.row_ends == batch.row_ends
