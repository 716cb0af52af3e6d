"""`dolphin data` as a person runs it: one table, the trained words, an exit code; and the launch that follows reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
