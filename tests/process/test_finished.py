"""What becomes of a run's model once it is trained: every part of it from the command line, as a person would."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from huggingface_hub import ModelCard

pytest.importorskip("gguf")
pytest.importorskip("lm_eval")

from tests.support.dolphin_cli import Dolphin, wait_until
from tests.support.hub import TOKEN, Hub
from tests.support.tasks import write_task
from tests.support.tiny_job import write_data, write_model

LONG_S = 900.0
"""Training, evaluations and files one after the other, on a busy machine."""


def write_quick_job(folder: Path, **groups: object) -> Path:
    """A job.yaml for a tiny model and a few steps on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "base", hidden=32)
    write_data(folder / "data.jsonl")
    rows = (folder / "data.jsonl").read_text().splitlines()
    (folder / "mine.jsonl").write_text("\n".join(rows[:6]) + "\n")
    job = {
        "name": "tiny",
        "model": {"base": "./base", "chat_template": "chatml"},
        "data": {
            "sources": [{"path": "./data.jsonl"}],
            "sequence_length": 96,
            "validation": [{"name": "held-out", "fraction": 0.1}, {"name": "mine", "path": "./mine.jsonl"}],
        },
        "train": {
            "max_steps": 8,
            "global_batch": 4,
            "micro_batch": 2,
            "learning_rate": 3e-3,
            "evaluate_every": 1,
            "evaluate_at_start": True,
            "stop": {"metric": "mine/loss", "patience": 2, "min_delta": 100.0},
        },
        "checkpoint": {"keep_best": "contains"},
        "resources": {"ranks_per_node": 1},
        **groups,
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub") / "hub")
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> tuple[Dolphin, str, Path]:
    """A run that was asked for all of it: (dolphin, run id, model folder)."""
    root = tmp_path_factory.mktemp("finished")
    dolphin = Dolphin(root / "home", fake=None, extra_environment=hub.environment)
    write_task(root / "job", "ends")
    job = write_quick_job(
        root / "job",
        evaluate={
            "prompts": ["the sea is"],
            "questions": 1,
            "questions_of": "mine",
            "max_new_tokens": 4,
            "metrics": ["contains"],
            "tasks": ["./ends.yaml"],
            "limit": 4,
        },
        export={"gguf": ["q8_0", "f16"], "which": "best"},
        push={"repo": "my-org/tiny"},
        card={"description": "A sentence of mine.", "license": "mit"},
        secrets=["HF_TOKEN"],
    )
    done = dolphin.run("launch", job, "-y", timeout_s=LONG_S)
    (run,) = dolphin.run_ids()
    assert TOKEN not in done.stdout + done.stderr
    for line in (
        "stopped early at step 3 of 8: mine/loss was ",
        "exporting the weights of step 1, the best by contains: 0.0000",
        "evaluation: ends acc",
        "gguf: tiny-f16.gguf, tiny-q8_0.gguf",
        "push: my-org/tiny, ",
        "logits differ by 0",
    ):
        assert line in done.stdout + done.stderr, done.stderr
    return dolphin, run, dolphin.home / "runs" / run / "model"


def test_the_card_tells_the_run_its_evaluation_and_its_author_s_words(finished: tuple[Dolphin, str, Path]) -> None:
    _, _, model = finished
    text = (model / "README.md").read_text()
    assert "A sentence of mine." in text
    for row in (
        "| devices | 1 |",
        "| total train batch size | 4 |",
        "| distributed type | single-CPU |",
        "| data.jsonl | 160 |",
    ):
        assert row in text, row
    assert "hours on 1 CPU rank" in text
    assert "| Training loss | Epoch | Step | Validation loss | mine/loss | contains |" in text
    number = r"\d+\.\d{4}"
    for step in (1, 3):
        assert re.search(
            rf"^\| {number} \| {number} \| {step} \| {number} \| {number} \| 0\.0000 \|$", text, re.MULTILINE
        )
    assert "These are the weights after step 1." in text
    assert "What it answers after step 1:" in text
    assert "the sea is\n→ " in text
    assert "\nanswer    " in text
    assert re.search(
        r"^\|ends\|2.0\|none\|0\|acc\|↑\|0\.\d{4}\|±\|0\.\d{4}\|0\.\d{4}\|±\|0\.\d{4}\|$", text, re.MULTILINE
    )
    read = ModelCard(text).data
    assert read.license == "mit"
    assert {result.dataset_name for result in read.eval_results} == {"ends"}


def test_a_run_leaves_gguf_files_and_the_command_writes_another(finished: tuple[Dolphin, str, Path]) -> None:
    dolphin, run, model = finished
    assert {path.name for path in (model / "gguf").iterdir()} >= {"tiny-f16.gguf", "tiny-q8_0.gguf", "Modelfile"}
    done = dolphin.run("export", run, "--to", "gguf", "--kind", "bf16", timeout_s=LONG_S)
    assert done.stdout.strip() == str(model / "gguf" / "tiny-bf16.gguf")
    assert "read back" in done.stderr


def test_the_hub_holds_the_very_folder_and_a_push_sends_what_is_new(
    finished: tuple[Dolphin, str, Path], hub: Hub
) -> None:
    dolphin, run, model = finished
    (model / "card-of-mine.md").write_text("later")
    done = dolphin.run("push", run, timeout_s=LONG_S)
    assert done.stdout.startswith("my-org/tiny, ")
    assert hub.content("my-org/tiny", "card-of-mine.md") == b"later"
    for name in ("model.safetensors", "config.json", "README.md", "gguf/tiny-q8_0.gguf"):
        assert hub.content("my-org/tiny", name) == (model / name).read_bytes()
    assert hub.repos["my-org/tiny"]["private"]
    refused = dolphin.run("push", str(model), expect=2)
    assert "--repo OWNER/NAME" in refused.stderr


def test_a_script_speaks_with_the_model(finished: tuple[Dolphin, str, Path]) -> None:
    dolphin, run, _ = finished
    process = dolphin.start("chat", run, "--greedy", "--max-new-tokens", "5", stdin=subprocess.PIPE)
    out, err = process.communicate("the sea is\n/reset\nblue and deep\n/quit\n", timeout=LONG_S)
    assert process.returncode == 0, err
    assert len(out.splitlines()) >= 2


def test_the_evaluation_is_asked_anew_only_where_it_is_another(finished: tuple[Dolphin, str, Path]) -> None:
    dolphin, run, model = finished
    task = model.parents[3] / "job" / "ends.yaml"
    again = dolphin.run("eval", run, "--tasks", str(task), "--limit", "4", timeout_s=LONG_S)
    assert "ends: tuned is known" in again.stderr
    assert "ends: base is known" in again.stderr
    assert again.stdout.startswith("|Tasks|Version|Filter|n-shot|Metric||Value||Stderr|Base||Stderr|")


def test_another_program_speaks_with_the_model_over_openai_s_api(finished: tuple[Dolphin, str, Path]) -> None:
    pytest.importorskip("openai")
    dolphin, run, model = finished
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = dolphin.start(
        "serve", run, "--port", str(port), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    body = {"model": str(model), "messages": [{"role": "user", "content": "the sea"}], "max_tokens": 4}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )

    def answer() -> dict | None:
        assert server.poll() is None, server.communicate()
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read())
        except OSError:
            return None

    try:
        assert wait_until(answer, LONG_S)["choices"][0]["message"]["role"] == "assistant"
    finally:
        server.send_signal(signal.SIGINT)
        for child in psutil.Process(server.pid).children(recursive=True):
            child.send_signal(signal.SIGINT)
        server.wait(LONG_S)
