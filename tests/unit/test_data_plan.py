"""The plan: every conversation once an epoch, in the same step at any number of ranks, from any step on.

A plan that moves with the number of GPUs makes a resumed run another run; one that loses a conversation trains on less
than was paid for.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.data_job import chat, data_job, write_rows
from trainer.data.batch import IGNORE, Batch, Share
from trainer.data.packing import by_falling_length, deal, one_a_row, pack, row_order
from trainer.data.plan import DataPlan
from trainer.data.prepare import prepare
from trainer.run.exits import BadInput
from trainer.run.settings.data import HELD_OUT

GLOBAL_BATCH = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    rows = [
        chat(f"question {i}", " ".join(["sea"] * (1 + i * 7 % 40)), system="Be brief." if i % 3 else None)
        for i in range(120)
    ]
    write_rows(folder / "data.jsonl", rows)
    return folder


def open_plan(root: Path, name: str = "run", *, train: dict[str, Any] | None = None, **data: Any) -> DataPlan:
    settings = {"sequence_length": 160, "validation_fraction": 0.1} | data
    job = data_job(
        root, root / "data.jsonl", name=name, train={"global_batch": GLOBAL_BATCH} | (train or {}), **settings
    )
    prepare(job)
    return DataPlan.open(job)


def conversations_of(batch: Batch) -> list[tuple[int, ...]]:
    """Token ids of each run between two offsets; padding runs are left out."""
    flat, labels = batch.ids_BT.flatten().tolist(), batch.labels_BT.flatten()
    cuts = batch.cu_seqlens.tolist()
    return [tuple(flat[a:b]) for a, b in pairwise(cuts) if (labels[a:b] != IGNORE).any()]


def step_contents(plan: DataPlan, step: int, world_size: int, micro_batch: int) -> list[tuple[int, ...]]:
    return sorted(
        conversation
        for rank in range(world_size)
        for index in range(plan.num_micro_batches(Share(0, world_size, micro_batch)))
        for conversation in conversations_of(plan.batch(step, Share(rank, world_size, micro_batch), index))
    )


@pytest.mark.parametrize("packing", [True, False])
def test_each_epoch_holds_every_conversation_exactly_once(root: Path, packing: bool) -> None:
    plan = open_plan(root, f"once-{packing}", packing=packing)
    expected = sorted(tuple(plan.data.token_ids(i).tolist()) for i in plan.data.train.tolist())
    assert len(expected) == plan.num_conversations == 108
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        assert sorted(c for step in steps for c in step_contents(plan, step, 2, 2)) == expected
    assert step_contents(plan, 0, 1, 1) != step_contents(plan, plan.steps_per_epoch, 1, 1), "epochs are shuffled anew"


@pytest.mark.parametrize("world_size, micro_batch", [(1, 6), (2, 3), (2, 1), (3, 1), (8, 1), (4, 2)])
def test_a_step_holds_the_same_at_any_number_of_ranks(root: Path, world_size: int, micro_batch: int) -> None:
    plan = open_plan(root)
    for step in range(plan.steps_per_epoch + 1):
        assert step_contents(plan, step, world_size, micro_batch) == step_contents(plan, step, 1, 1)
        batches = [
            plan.batch(step, Share(rank, world_size, micro_batch), index)
            for rank in range(world_size)
            for index in range(plan.num_micro_batches(Share(0, world_size, micro_batch)))
        ]
        assert sum(float(batch.weights_BT.sum()) for batch in batches) == pytest.approx(plan.step_weight(step))
        assert sum(int((batch.labels_BT != IGNORE).sum()) for batch in batches) == plan.step_trained_tokens(step)


def test_any_step_can_be_the_first(root: Path) -> None:
    walked, jumped = open_plan(root, "walked"), open_plan(root, "jumped")
    step = 2 * walked.steps_per_epoch + 1
    for earlier in range(step):
        walked.batch(earlier, Share(0, 1, 2), 0)
    assert torch.equal(walked.batch(step, Share(0, 1, 2), 0).ids_BT, jumped.batch(step, Share(0, 1, 2), 0).ids_BT)
    assert walked.conversations(step) == jumped.conversations(step)


def test_labels_are_shifted_and_never_cross_into_the_next_conversation(root: Path) -> None:
    plan = open_plan(root)
    batch = plan.batch(0, Share(0, 1, GLOBAL_BATCH), 0)
    ids, labels, weights = batch.ids_BT.flatten(), batch.labels_BT.flatten(), batch.weights_BT.flatten()
    cuts = batch.cu_seqlens.tolist()
    assert cuts[0] == 0
    assert cuts[-1] == ids.numel()
    assert batch.max_seqlen == int(np.diff(cuts).max())
    for start, end in pairwise(cuts):
        assert labels[end - 1] == IGNORE
        trained = (labels[start:end] != IGNORE).nonzero().flatten() + start
        assert torch.equal(labels[trained], ids[trained + 1])
        assert batch.positions_BT.flatten()[start:end].tolist() == list(range(end - start))
    assert torch.equal(weights > 0, labels != IGNORE)
    assert set(cuts) >= {row * plan.sequence_length for row in range(GLOBAL_BATCH + 1)}, "no run crosses a row"


def test_the_last_short_step_is_padded_with_rows_that_train_nothing(root: Path) -> None:
    plan = open_plan(root)
    assert plan.num_sequences % GLOBAL_BATCH, "the data of this test must not divide"
    last = plan.steps_per_epoch - 1
    rows = plan.num_sequences - last * GLOBAL_BATCH
    whole = plan.batch(last, Share(0, 1, GLOBAL_BATCH), 0)
    assert (whole.weights_BT[:rows].sum(dim=1) > 0).all()
    assert not whole.weights_BT[rows:].any()
    assert (whole.ids_BT[rows:] == plan.pad_token).all()


@pytest.mark.parametrize(
    "train, steps",
    [
        ({"epochs": 1.0}, lambda epoch: epoch),
        ({"epochs": 3.0}, lambda epoch: 3 * epoch),
        ({"epochs": 0.5}, lambda epoch: -(-epoch // 2)),
        ({"max_steps": 100}, lambda _: 100),
    ],
)
def test_total_steps(root: Path, train: dict[str, Any], steps: Callable[[int], int]) -> None:
    plan = open_plan(root, train=train)
    assert plan.total_steps == steps(plan.steps_per_epoch)
    assert plan.epoch_of(plan.steps_per_epoch) == 1.0
    plan.batch(99, Share(0, 1, 1), 0)


def test_the_same_data_is_planned_in_another_order_with_another_seed_only(root: Path) -> None:
    plan, again = open_plan(root, "a"), open_plan(root, "b")
    other = open_plan(root, "c", train={"seed": 7})
    assert plan.key == again.key != other.key
    assert plan.conversations(0) == again.conversations(0) != other.conversations(0)


def test_evaluation_sees_each_held_out_conversation_once_at_any_number_of_ranks(root: Path) -> None:
    plan = open_plan(root)
    held_out = sorted(tuple(plan.data.token_ids(i).tolist()) for i in plan.data.validation.tolist())
    assert plan.has_validation
    assert len(held_out) == 12
    for world_size, micro_batch in ((1, 1), (2, 1), (3, 2)):
        seen = [
            conversation
            for rank in range(world_size)
            for index in range(plan.eval_num_micro_batches(Share(0, world_size, micro_batch), HELD_OUT))
            for conversation in conversations_of(plan.eval_batch(Share(rank, world_size, micro_batch), HELD_OUT, index))
        ]
        assert sorted(seen) == held_out


def test_conversations_of_a_step_are_named_for_the_error_that_needs_them(root: Path) -> None:
    plan = open_plan(root)
    names = plan.conversations(0)
    assert all(name.startswith(str(root / "data.jsonl:")) for name in names)
    shares = [plan.conversations(0, Share(rank, 2, 1)) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(names)
    by_micro_batch = [
        plan.conversations(0, Share(0, 2, 1), index) for index in range(plan.num_micro_batches(Share(0, 2, 1)))
    ]
    assert [name for names in by_micro_batch for name in names] == shares[0]


def test_a_run_that_was_not_prepared_says_so(root: Path) -> None:
    with pytest.raises(BadInput, match="prepare the data first"):
        DataPlan.open(data_job(root, root / "data.jsonl", name="never"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=200), st.integers(0, 3))
def test_packing_loses_nothing_and_overfills_nothing(lengths: list[int], epoch: int) -> None:
    array = np.array(lengths, np.int64)
    order = by_falling_length(array)
    for layout in (pack(array, 64), one_a_row(array)):
        dealt = deal(order, array[order], 3, epoch)
        assert sorted(dealt[layout.slots].tolist()) == list(range(len(array)))
        rows = [array[dealt[layout.slots[a:b]]].sum() for a, b in pairwise(layout.starts)]
        assert all(0 < row <= 64 for row in rows)
        assert sorted(row_order(layout.num_rows, 3, epoch).tolist()) == list(range(layout.num_rows))
    if lengths:
        # Best-fit-decreasing never needs more than 11/9 of the optimum and 4 rows more (Johnson 1973).
        assert pack(array, 64).num_rows <= 11 / 9 * max(-(-int(array.sum()) // 64), int((array > 32).sum())) + 4


def test_a_million_sequences_are_packed_within_a_thousandth_of_the_bound() -> None:
    lengths = np.clip(np.exp(np.random.Generator(np.random.PCG64(0)).normal(6.0, 0.9, 1_000_000)), 1, 8192).astype(
        np.int32
    )
    assert pack(lengths, 8192).num_rows <= 1.001 * -(-int(lengths.sum()) // 8192)


def test_a_sequence_that_cannot_fit_is_an_error_not_a_cut() -> None:
    with pytest.raises(ValueError, match=r"1\.\.64"):
        pack(np.array([3, 65]), 64)
