"""What becomes of a run's model once it is trained: every part of it from the command line, as a person would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.support.dolphin_cli import Dolphin
from tests.support.tiny_job import write_data, write_model


def write_quick_job(folder: Path, **groups: object) -> Path:
    """A job.yaml for a tiny model and a few steps on this machine."""
    folder.mkdir(parents=True)
    write_model(folder / "base", hidden=32)
    write_data(folder / "data.jsonl")
    job = {
        "name": "tiny",
        "model": {"base": "./base", "chat_template": "chatml"},
        "data": {"sources": [{"path": "./data.jsonl"}], "sequence_length": 96, "validation_fraction": 0.1},
        "train": {
            "max_steps": 4,
            "global_batch": 4,
            "micro_batch": 2,
            "learning_rate": 3e-3,
            "evaluate_at_start": True,
        },
        "resources": {"ranks_per_node": 1},
        **groups,
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dolphin, str, Path]:
    """A run that was asked for all of it: (dolphin, run id, model folder)."""
    root = tmp_path_factory.mktemp("finished")
    dolphin = Dolphin(root / "home", fake=None)
    job = write_quick_job(
        root / "job", export={"gguf": ["q8_0", "f16"]}, card={"description": "A sentence of mine.", "license": "mit"}
    )
    said = dolphin.run("launch", job, "-y").stderr
    (run,) = dolphin.run_ids()
    assert "gguf: tiny-f16.gguf, tiny-q8_0.gguf" in said
    return dolphin, run, dolphin.home / "runs" / run / "model"


def test_the_card_tells_the_run_and_its_author_s_words(finished: tuple[Dolphin, str, Path]) -> None:
    _, _, model = finished
    text = (model / "README.md").read_text()
    assert "A sentence of mine." in text
    for row in (
        "| devices | 1 |",
        "| total train batch size | 4 |",
        "| distributed type | single-CPU |",
        "| data.jsonl | 160 | 144 | 16 | 0 |",
    ):
        assert row in text, row
    assert "hours on 1 CPU rank" in text
    assert "\nanswer    " in text
    assert ModelCard(text).data.license == "mit"


def test_a_run_leaves_gguf_files_and_the_command_writes_another(finished: tuple[Dolphin, str, Path]) -> None:
    dolphin, run, model = finished
    assert {path.name for path in (model / "gguf").iterdir()} == {"tiny-f16.gguf", "tiny-q8_0.gguf", "Modelfile"}
    done = dolphin.run("export", run, "--to", "gguf", "--kind", "bf16")
    assert done.stdout.strip() == str(model / "gguf" / "tiny-bf16.gguf")
    assert "read back" in done.stderr
