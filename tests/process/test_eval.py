"""An evaluation that is lost by one task that fails, asked twice, or told of other weights than those that were asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from tests.support.tasks import write_broken_task, write_task
from tests.support.tiny_job import write_model
from tests.unit.test_card import FACTS
from trainer.export import card_text
from trainer.finished import harness
from trainer.finished.harness import Questions, Weights
from trainer.run.exits import BadInput


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(tuned, base): two folders with other weights."""
    import torch
    from transformers import LlamaForCausalLM

    root = tmp_path_factory.mktemp("models")
    base, tuned = write_model(root / "base"), write_model(root / "tuned")
    model = LlamaForCausalLM.from_pretrained(tuned)
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight) * 0.5)
    model.save_pretrained(tuned)
    (tuned / "card.json").write_text(json.dumps(FACTS))
    return tuned, base


def test_base_and_tuned_stand_in_one_table_and_a_failed_task_loses_no_other(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    tuned, base = models
    tasks = (str(write_broken_task(tmp_path, "broken_ends")), str(write_task(tmp_path, "ends")))
    said: list[str] = []
    results = harness.evaluate(tuned, Weights(str(base)), Questions(tasks, limit=4), tmp_path, said.append)
    (row,) = harness.rows_of(results.answers)
    assert (row["task"], row["metric"], row["shots"], row["version"]) == ("ends", "acc", 0, 2.0)
    assert 0 <= row["value"] <= 1
    assert row["stderr"] > 0
    assert row["base_value"] is not None
    assert set(results.failed) == {"broken_ends (tuned)", "broken_ends (base)"}
    text = (tuned / "README.md").read_text()
    assert f"|ends|2.0|none|0|acc|↑|{row['value']:.4f}|±|{row['stderr']:.4f}|{row['base_value']:.4f}|±|" in text
    assert "the first 4 questions of each task" in text
    assert "broken_ends (tuned) could not be evaluated" in text
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["rows"] == [row]

    (tuned / card_text.RESULTS).unlink()  # as a new export of the same weights leaves it
    again: list[str] = []
    harness.evaluate(tuned, Weights(str(base)), Questions(tasks[1:], limit=4), tmp_path, again.append)
    assert again == ["ends: tuned is known", "ends: base is known"]
    asked_anew: list[str] = []
    harness.evaluate(tuned, None, Questions(tasks[1:], limit=6), tmp_path, asked_anew.append)
    assert [line.split(" asked")[0] for line in asked_anew] == ["ends: tuned"]
    (row,) = harness.rows_of(harness.Results.read([tmp_path / "results.json"]).answers)
    assert row["base_value"] is None, "the base was asked other questions"


def test_a_task_that_nobody_knows_is_refused_before_a_model_is_loaded(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "none.yaml").write_text("- a\n")
    with pytest.raises(BadInput, match="names no task"):
        harness.evaluate(models[0], None, Questions((str(tmp_path / "none.yaml"),)), None, print)
    with pytest.raises(BadInput, match="no task file"):
        harness.evaluate(models[0], None, Questions((str(tmp_path / "gone.yaml"),)), None, print)
