"""`dolphin data` as a person runs it: one table, the trained words, an exit code; and the launch that follows reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.jobfile.load import load_job
from launcher.plan import counting
from launcher.plan.data_facts import estimated
from tests.support.data_job import chat, write_rows, write_tokenizer

TIMEOUT_S = 120


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data-command")
    write_tokenizer(folder / "tokenizer", eos_token="<|im_end|>")
    (folder / "tokenizer" / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 700, "hidden_size": 32, '
        '"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}'
    )
    write_rows(folder / "good.jsonl", [chat(f"question {i}", f"answer {i} 🐬") for i in range(20)] * 2)
    write_rows(folder / "bad.jsonl", [chat("only a question")] * 3 + [chat("q", "a")])
    for name in ("good", "bad"):
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\nmodel: {{base: tokenizer}}\n"
            f"data: {{sources: [{{path: {name}.jsonl}}], deduplicate: exact, sequence_length: 128}}\n"
            "train: {global_batch: 4}\n"
        )
    return folder


def dolphin(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher.cli", "data", *arguments],
        env=os.environ | {"DOLPHIN_HOME": str(root / "home")}, cwd=root, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def test_the_table_says_what_became_of_the_data_and_the_words_that_are_trained_stand_out(root: Path) -> None:
    done = dolphin(root, "good.yaml", "--show", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("⟦answer") == 2
    assert "🐬<|im_end|>⟧" in done.stdout
    assert "⟦question" not in done.stdout
    [row] = [line.split() for line in done.stderr.splitlines() if "sharegpt" in line]
    assert row[2:5] == ["40", "19", "1"], "rows, train, held out"
    assert "20 duplicate" in done.stderr
    assert "steps an epoch at a global batch of 4" in done.stderr

    again = dolphin(root, "good.yaml", "--json")
    assert again.returncode == 0
    assert "preparing data" not in again.stderr, "the second time everything is there"
    totals = json.loads(again.stdout)["totals"]
    assert totals["train_conversations"] == 19
    assert totals["steps_per_epoch"] == -(-totals["packed_sequences"] // 4)


def test_bad_data_is_a_bad_job_with_its_lines(root: Path) -> None:
    done = dolphin(root, "bad.yaml")
    assert done.returncode == 2
    assert "3 of 4 rows cannot be used" in done.stderr
    assert "3 one-sided" in done.stderr
    [report] = [line.removeprefix("report: ") for line in done.stderr.splitlines() if line.startswith("report: ")]
    assert [entry["line"] for entry in json.loads(Path(report).read_text())["bad_rows"]] == [1, 2, 3]


def test_formats_are_listed_without_a_job(root: Path) -> None:
    listed = dolphin(root, "--formats", "--json")
    assert {"sharegpt", "messages", "alpaca", "text"} <= {entry["name"] for entry in json.loads(listed.stdout)}
    nothing = dolphin(root)
    assert nothing.returncode == 2
    assert "name the job file" in nothing.stderr


def plan(root: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "plan", "counted.yaml", "--json", *arguments],
        env=os.environ | {"DOLPHIN_HOME": str(root / "home")}, cwd=root, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)["data"], done.stderr


def test_a_plan_counts_data_of_this_machine_itself_and_again_once_it_changed(root: Path) -> None:
    rows = [chat(f"question {i}", f"answer {i}") for i in range(30)]
    write_rows(root / "counted.jsonl", rows)
    (root / "counted.yaml").write_text((root / "good.yaml").read_text().replace("good", "counted"))
    data, said = plan(root)
    assert (data["basis"], "counting the data" in said) == ("prepared", True)
    assert 20 <= data["conversations"] <= 30
    again, said = plan(root)
    assert (again, said.count("counting")) == (data, 0)
    write_rows(root / "counted.jsonl", rows + [chat(f"more {i}", f"of it {i}") for i in range(30)])
    assert plan(root)[0]["conversations"] > 40


def test_a_count_that_takes_too_long_leaves_an_estimate_that_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    monkeypatch.setattr(counting, "LARGEST_BYTES", 10**6)
    job = load_job(root / "good.yaml")
    why = counting.count(job, limit_s=0.01)
    assert why == "it took more than 0 s"
    assert counting.counted(job) is None
    assert not list((tmp_path / "cache").rglob("*.tmp-*"))
    monkeypatch.setenv("DOLPHIN_HOME", "/proc/nowhere")
    assert counting.count(job) == "/proc/nowhere: No such file or directory", (
        "a plan can be made where nothing is written"
    )
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    monkeypatch.setattr(counting, "LARGEST_BYTES", 10)
    assert "not counted unasked" in counting.count(job)
    facts = estimated(job.data, why)
    assert facts is not None
    assert why in facts.source
