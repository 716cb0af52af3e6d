"""A card that the hub refuses, that loses its author's words when it is written again, or that says what was not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from tests.support import tiny_job
from trainer.export import card, card_text, run_facts
from trainer.run.limits import Limits
from trainer.run.run_folder import EventKind
from trainer.run.settings.data import DataSpec
from trainer.run.spec import NodeJob, TrainSpec

FACTS: dict[str, Any] = {
    "name": "my-model", "description": "", "license": None, "language": [], "tags": [], "base": "base", "base_model": None,
    "revision": None, "verb": "fine-tuned", "adapter": None, "datasets": [], "conversations": 10, "tokens": 100,
    "trained_tokens": 50, "final_loss": None, "example": None, "parameters": 100, "trained_parameters": 50,
    "sequence_length": 64, "packing": True, "sources": ["a.jsonl"], "data": [], "kernel": "sdpa", "hyperparameters": [("seed", 1)],
    "results": [], "run": [], "configuration": "name: my-model\n", "sample": None, "versions": [["torch", "2"]],
}  # fmt: skip
ROW = {
    "task": "leaderboard_musr", "alias": "leaderboard_musr", "depth": 0, "version": 1.0, "filter": "none", "shots": 0,
    "metric": "acc_norm", "higher_is_better": True, "value": 0.3862, "stderr": 0.0173, "base_value": None, "base_stderr": None,
}  # fmt: skip
RESULTS = {"harness": "0.4.13", "rows": [ROW], "failed": {"leaderboard_gpqa": "it is gated"}}


def folder_with(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "card.json").write_text(json.dumps(FACTS | changes))
    card_text.write(folder)
    return folder


def test_the_hub_s_own_reader_finds_license_data_and_results(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path, license="llama3.1", base_model="meta-llama/Meta-Llama-3.1-8B", datasets=["mlabonne/FineTome-100k"],
        language=["en"], tags=["cooking"],
    )  # fmt: skip
    (folder / "results.json").write_text(json.dumps(RESULTS))
    card_text.write(folder)
    read = ModelCard.load(folder / "README.md")
    data = read.data
    assert (data.license, data.base_model, data.language) == ("llama3.1", "meta-llama/Meta-Llama-3.1-8B", ["en"])
    assert (data.datasets, data.tags) == (["mlabonne/FineTome-100k"], ["dolphin", "cooking"])
    assert data.model_name == "my-model"
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("leaderboard_musr", "acc_norm", 0.3862)
    model_index_to_eval_results(data.to_dict()["model-index"])


def test_the_table_is_laid_out_as_published_ones(tmp_path: Path) -> None:
    """Task, version, filter, shots, metric, arrow, value, error: as the reference card has them."""
    child = ROW | {
        "task": "leaderboard_musr_murder_mysteries",
        "alias": "leaderboard_musr_murder_mysteries",
        "depth": 1,
    }
    second = ROW | {"metric": "acc", "stderr": None}
    lines = card_text.table([ROW | {"version": "N/A"}, second, child])
    assert lines[0] == "|Tasks|Version|Filter|n-shot|Metric||Value||Stderr|"
    assert lines[2] == "|leaderboard_musr|N/A|none|0|acc_norm|↑|0.3862|±|0.0173|"
    assert lines[3] == "|||none|0|acc|↑|0.3862|±|N/A|"
    assert lines[4].startswith("| - leaderboard_musr_murder_mysteries|1.0|")
    both = card_text.table([ROW | {"base_value": 0.3, "base_stderr": 0.02}])
    assert both[0].endswith("|Base||Stderr|")
    assert both[2].endswith("|0.3862|±|0.0173|0.3000|±|0.0200|")


def test_a_task_that_failed_is_in_the_card(tmp_path: Path) -> None:
    assert "leaderboard_gpqa could not be evaluated: it is gated" in card_text.evaluation_section(RESULTS)


def test_the_author_s_words_outlive_every_rewrite(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, description="For my *cooking* show.")
    assert "For my *cooking* show." in (folder / "README.md").read_text()
    (folder / "results.json").write_text(json.dumps(RESULTS))
    card_text.write(folder)
    first = (folder / "README.md").read_text()
    assert "For my *cooking* show." in first
    assert "0.3862" in first
    (folder / "README.md").write_text(
        first.replace("## Prompt format", "## By hand\n\nMy own words.\n\n## Prompt format")
    )
    (folder / "results.json").write_text(json.dumps(RESULTS | {"rows": [ROW | {"value": 0.5}]}))
    card_text.write(folder)
    again = (folder / "README.md").read_text()
    assert "My own words." in again
    assert "0.5000" in again
    assert "0.3862" not in again
    assert again.count("## Evaluation") == 1
    assert ModelCard(again).data.eval_results[0].metric_value == 0.5


def test_a_card_without_evaluations_tells_the_held_out_loss(tmp_path: Path) -> None:
    (result,) = ModelCard.load(folder_with(tmp_path, final_loss=0.5655) / "README.md").data.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", 0.5655)


def test_the_license_is_the_base_s_own_where_its_card_says_one(tmp_path: Path) -> None:
    assert card.license_of(str(tmp_path), None) is None
    (tmp_path / "README.md").write_text("---\nlicense: llama3.1\ntags: [a]\n---\n# Base\n")
    assert card.license_of(str(tmp_path), None) == "llama3.1"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert card.license_of(str(tmp_path), None) is None


def test_datasets_are_hub_ids() -> None:
    paths = [
        "hf://mlabonne/FineTome-100k@main",
        "hf://owner/name/data/train.parquet",
        "hf://owner/name",
        "/home/me/x.jsonl",
    ]
    spec = TrainSpec.model_validate(
        {
            "name": "a",
            "model": {"base": "x"},
            "data": {"sources": [{"path": path} for path in paths], "sequence_length": 8},
        }
    )
    assert isinstance(spec.data, DataSpec)
    assert card.hub_datasets(spec) == ["mlabonne/FineTome-100k", "owner/name"]


def test_the_axolotl_configuration_is_shown_without_what_is_of_a_machine(tmp_path: Path) -> None:
    text = "base_model: org/base  # mine\noutput_dir: ./out\nwandb_entity: me\ndatasets:\n  - path: /home/me/rows.jsonl\n    type: chat_template\n"
    shown = card.axolotl(text)
    assert shown == "base_model: org/base\ndatasets:\n- path: rows.jsonl\n  type: chat_template\n"
    assert card.axolotl("") == card.axolotl("[") == ""
    assert f"```yaml\n{shown}```" in (folder_with(tmp_path / "a", axolotl=shown) / "README.md").read_text()
    assert "axolotl" not in (folder_with(tmp_path / "b", axolotl="") / "README.md").read_text()


@pytest.fixture
def job(tmp_path: Path) -> NodeJob:
    (tmp_path / "base").mkdir()
    (tmp_path / "data.jsonl").touch()
    return NodeJob.read(tiny_job.write_job(tmp_path, "run", nproc=2).train_json)


def test_the_price_counts_every_node_and_what_was_trained_twice(job: NodeJob) -> None:
    run = card.RunDir(job.run_dir)
    lines = [
        {"step": step, "seconds": 1800.0, "tokens_per_second": 100.0 * step, "gpu_power_w": 300.0, "mfu": 0.4}
        for step in (1, 2, 2)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    nodes = [{"time": 1010, "setup_at": 1000, "node": "a", "price_usd_per_hour": 2.0}, {"time": 8210, "setup_at": 8200, "node": "b", "price_usd_per_hour": 4.0}]  # fmt: skip
    run.nodes.write_text("".join(json.dumps(line) + "\n" for line in nodes))
    events = [{"time": 4600, "event": EventKind.PREEMPTED.value}, {"time": 8300, "event": EventKind.RESUMED.value}, {"time": 9000, "event": EventKind.PHASE.value}]  # fmt: skip
    run.events.write_text("".join(json.dumps(line) + "\n" for line in events))
    planned = job.model_copy(update={"limits": Limits(planned_hours=1.5, planned_usd=4.0)})
    facts = dict(run_facts.of(planned, run, now=11800.0))
    assert facts["training"] == "1.50 hours on 2 CPU ranks"
    assert facts["nodes"] == "2"
    assert facts["interruptions"] == "1 stops that saved, 0 restarts, 1 resumes"
    assert (facts["planned"], facts["paid"]) == ("1.5 h, $4.00", "2.0 h, $6.00 until the export")
    assert facts["speed"] == "200 tokens/s, the median of all steps"
    assert facts["energy"].startswith("0.90 kWh")


def test_a_run_that_measured_nothing_says_nothing_of_it(job: NodeJob) -> None:
    facts = dict(run_facts.of(job, card.RunDir(job.run_dir), now=0.0))
    assert set(facts) == {"training", "interruptions"}
