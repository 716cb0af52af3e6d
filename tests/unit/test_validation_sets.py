"""A test set that is trained on, a set that nobody measures, a count of right tokens that changes the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.data_job import chat, data_job, write_rows
from trainer.data.batch import Share
from trainer.data.plan import DataPlan
from trainer.data.prepare import prepare
from trainer.data.prepared import Prepared
from trainer.model.loss import LossHead
from trainer.run.exits import BadInput

ROWS = [chat(f"Say {i}?", f"{i}, of course, and {i * i} too.") for i in range(40)]
OTHER = [chat(f"Sing {i}?", f"La la {i}, la la {i}.") for i in range(10)]


def prepared(root: Path, name: str, validation: list[dict[str, Any]], **data: Any) -> Prepared:
    write_rows(root / "a.jsonl", [*ROWS, *ROWS[:5]])
    settings = {"validation_fraction": 0.01, "validation": validation} | data  # at its default it counts as not stated
    return prepare(data_job(root, root / "a.jsonl", name=name, **settings))


def rows_of(data: Prepared, sequences: Any) -> set[tuple[str, int]]:
    return {(data.meta["files"][file], int(row)) for file, row in data.origin[sequences]}


def words_of(data: Prepared, sequences: Any) -> list[tuple[int, ...]]:
    return [tuple(data.token_ids(int(sequence)).tolist()) for sequence in sequences]


def test_no_conversation_is_on_two_sides_and_the_report_says_what_became_of_each(tmp_path: Path) -> None:
    mine = write_rows(tmp_path / "mine.jsonl", [*ROWS[3:7], *OTHER[:4], OTHER[0]])
    yours = write_rows(tmp_path / "yours.jsonl", [OTHER[1], *OTHER[4:8]])
    data = prepared(
        tmp_path, "run",
        [{"name": "drawn", "fraction": 0.1}, {"name": "mine", "path": str(mine)}, {"name": "yours", "path": str(yours)},
         {"name": "few", "count": 3}],
    )  # fmt: skip
    sets = data.validation_sets
    assert {name: len(members) for name, members in sets.items()} == {"drawn": 4, "mine": 8, "yours": 4, "few": 3}
    held = [words for members in sets.values() for words in words_of(data, members)]
    assert len(held) == len(set(held)) == 19
    assert not set(held) & set(words_of(data, data.train))
    sources = json.loads((tmp_path / "run" / "data_report.json").read_text())["sources"]
    assert [(one["validation_set"], one["validation_conversations"], one["duplicates"]) for one in sources] == [
        (None, 7, 0), ("mine", 8, 1), ("yours", 4, 1)
    ]  # fmt: skip
    assert sources[0]["copies_of_held_out"] >= 4 + 2, "the four in mine, two of which stand twice"
    assert sources[0]["train_conversations"] == len(data.train) == 45 - 7 - sources[0]["copies_of_held_out"]
    totals = json.loads((tmp_path / "run" / "data_report.json").read_text())["totals"]["validation"]
    assert [(one["name"], one["conversations"]) for one in totals] == [
        ("drawn", 4),
        ("mine", 8),
        ("yours", 4),
        ("few", 3),
    ]
    assert all(one["packed_sequences"] >= 1 and one["trained_tokens"] < one["tokens"] for one in totals)


def test_a_near_copy_of_a_test_question_is_dropped_from_training_and_not_from_the_test(tmp_path: Path) -> None:
    long = "the sea is blue and deep so a dolphin swims far from land to find its kin under warm light " * 4
    mine = write_rows(tmp_path / "mine.jsonl", [chat("Tell me of the sea", long + "today.")])
    write_rows(tmp_path / "a.jsonl", [*ROWS, chat("Tell me of the sea", long + "now.")])
    settings: dict[str, Any] = {"validation": [{"name": "mine", "path": str(mine)}], "deduplicate": "near"}
    data = prepare(data_job(tmp_path, tmp_path / "a.jsonl", validation_fraction=0.01, **settings))
    assert rows_of(data, data.validation_sets["mine"]) == {(str(mine), 1)}
    assert (str(tmp_path / "a.jsonl"), 41) not in rows_of(data, data.train)


def test_a_set_takes_what_it_is_told_to_and_one_of_nothing_is_an_error(tmp_path: Path) -> None:
    mine = write_rows(tmp_path / "mine.jsonl", OTHER)
    for size, count in (({"count": 3}, 3), ({"fraction": 0.5}, 5), ({"count": 30}, 10)):
        data = prepared(tmp_path, f"run-{count}", [{"name": "mine", "path": str(mine), **size}])
        assert len(data.validation_sets["mine"]) == count
    copies = write_rows(tmp_path / "copies.jsonl", OTHER)
    with pytest.raises(BadInput, match="no conversation is left for again"):
        prepared(tmp_path, "none", [{"name": "mine", "path": str(mine)}, {"name": "again", "path": str(copies)}])
    with pytest.raises(BadInput, match=r"data\.validation 40 leaves none of the 40 different conversations"):
        prepared(tmp_path, "all", [{"name": "a", "count": 20}, {"name": "b", "count": 20}])


def test_each_set_is_evaluated_whole_by_itself(tmp_path: Path) -> None:
    mine = write_rows(tmp_path / "mine.jsonl", OTHER)
    prepared(tmp_path, "run", [{"name": "drawn", "count": 4}, {"name": "mine", "path": str(mine)}])
    plan = DataPlan.open(data_job(tmp_path, tmp_path / "a.jsonl", name="run"))
    assert plan.validation_names == ("drawn", "mine")
    for name in plan.validation_names:
        tokens = sum(
            int((plan.eval_batch(Share(rank, 2, 1), name, index).weights_BT > 0).sum())
            for rank in range(2)
            for index in range(plan.eval_num_micro_batches(Share(rank, 2, 1), name))
        )
        assert tokens == int(plan.data.trained[plan.data.validation_sets[name]].sum())


def test_right_tokens_and_entropy_are_those_of_the_whole_logits_and_change_no_loss() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 50, bias=False)
    head = LossHead(linear, chunk=7)
    hidden, labels = torch.randn(2, 20, 16), torch.randint(0, 50, (2, 20))
    labels[0, 3:9] = -100
    weights = (labels != -100).float()
    logits = head.logits(hidden.reshape(-1, 16))[(labels != -100).reshape(-1)]
    targets = labels[labels != -100]
    loss = head(hidden, labels, weights)
    counts = head.tally.take()
    assert (counts.labels, int(counts.correct), counts.entropy) == (34, int((logits.argmax(-1) == targets).sum()), 0)
    with torch.no_grad():
        assert head(hidden, labels, weights) == loss
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy().sum()
    assert float(head.tally.take().entropy) == pytest.approx(float(entropy.detach()), rel=1e-5)
    assert head.tally.take() == (0, 0, 0)
