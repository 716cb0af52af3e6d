"""A folder with a downloaded data set holds Python files too: none of them is ever run, whatever it is called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import tiny_job

ROOT = Path(__file__).parents[2]
NAMES = (
    "trainer",
    "launcher",
    "numpy",
    "torch",
    "json",
    "random",
    "pydantic",
    "yaml",
    "psutil",
    "typer",
    "runpy",
    "tqdm",
)
"""Packages of dolphin's, modules that it or what it stands on imports, and some of the standard library."""


def write_strangers(folder: Path, mark: Path) -> None:
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r} + ' ')\nraise SystemExit(99)\n")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    tiny_job.write_model(folder / "base")
    tiny_job.write_data(folder / "data.jsonl", 60)
    job = {
        "name": "tiny",
        "model": {"base": "./base", "chat_template": "chatml"},
        "data": {"sources": [{"path": "./data.jsonl"}], "sequence_length": 96},
        "train": {
            "max_steps": 3, "global_batch": 2, "micro_batch": 1, "precision": "fp32", "zero": 0, "evaluate_every": "never",
            "unfrozen": {"spectrum": {"snr": "./base", "top": "50%"}},
        },
        "resources": {"ranks_per_node": 2},
    }  # fmt: skip
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    write_strangers(folder, folder / "mark")
    return folder


def dolphin(folder: Path, path: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = tiny_job.environment(DOLPHIN_HOME=str(folder / "home"))
    environment.pop("PYTHONPATH", None)
    environment |= {} if path is None else {"PYTHONPATH": path}
    script = [str(Path(sys.executable).with_name("dolphin"))]
    return subprocess.run(
        [*script, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "path", [None, os.pathsep, ".", "{}"], ids=["no PYTHONPATH", "an empty entry", "a dot", "named"]
)
def test_no_command_reads_a_module_of_the_working_folder(hostile: Path, path: str | None) -> None:
    done = dolphin(hostile, path and path.format(hostile), "validate", "job.yaml")
    assert not (hostile / "mark").exists(), (hostile / "mark").read_text()
    assert done.returncode == 0, done.stderr


def test_a_whole_run_in_a_strangers_folder_runs_nothing_of_it(hostile: Path) -> None:
    """The scan, the preparation and its workers, torchrun, both ranks, the export and the sample."""
    done = dolphin(hostile, str(hostile), "launch", "job.yaml", "-y", "--on", "local")
    assert not (hostile / "mark").exists(), (hostile / "mark").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    shown = dolphin(hostile, f"{os.pathsep}{hostile}", "data", "job.yaml", "--json")
    assert not (hostile / "mark").exists(), (hostile / "mark").read_text()
    assert shown.returncode == 0, shown.stderr
