"""What SkyPilot runs on a new node before the trainer: a second node that shares the folder must install nothing again."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from launcher.backends.sky.task import template_text

SETUP = yaml.safe_load(template_text())["setup"]


def node(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `setup` as on a node of its own, whose home is `folder`; the virtual environments' folder is shared."""
    (folder / "dolphin-inputs").mkdir(parents=True, exist_ok=True)
    (folder / "dolphin-inputs" / "requirements.txt").write_text("torch>=2.13,<2.14\n")
    settings = {
        "HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DOLPHIN_CONTAINER": "none",
        "DOLPHIN_IMAGE": "", "DOLPHIN_VENVS": str(folder.parent / "shared"), "DOLPHIN_VENV": "venv-abc", **environment,
    }  # fmt: skip
    return subprocess.run(["bash", "-c", SETUP], env=settings, capture_output=True, text=True, timeout=300, check=False)


def python_of(folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", '. ~/.dolphin-node && "$DOLPHIN_PYTHON" -c "import torch; print(torch.__version__)"'],
        env={"HOME": str(folder), "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def index(tmp_path: Path) -> str:
    """A package index with a torch in it, of an own kind."""
    folder = tmp_path / "index" / "torch"
    folder.mkdir(parents=True)
    info = "torch-2.13.1.dist-info"
    with zipfile.ZipFile(folder / "torch-2.13.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch.py", "__version__ = 'for an older CUDA'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.1\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text('<a href="torch-2.13.1-py3-none-any.whl">torch</a>')
    return f"file://{tmp_path}/index"


def test_the_trainer_is_installed_once_for_all_nodes_with_the_torch_that_was_asked_for(
    tmp_path: Path, index: str
) -> None:
    alone = {"PIP_CONFIG_FILE": os.devnull, "DOLPHIN_TORCH_INDEX": index}
    first = node(tmp_path / "first", **alone)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("installing the trainer into") == 1
    second = node(tmp_path / "second", **alone)
    assert (second.returncode, second.stdout) == (0, ""), second.stderr
    assert python_of(tmp_path / "first") == python_of(tmp_path / "second") == "for an older CUDA"


def test_an_installation_that_fails_is_one_line_and_is_made_anew_by_the_next_node(tmp_path: Path, index: str) -> None:
    broken = node(tmp_path / "first", PIP_CONFIG_FILE=os.devnull, DOLPHIN_TORCH_INDEX=f"file://{tmp_path}/nothing")
    assert broken.returncode == 1
    assert broken.stderr.splitlines()[-1].startswith("dolphin: the trainer cannot be installed on this node")
    mended = node(tmp_path / "second", PIP_CONFIG_FILE=os.devnull, DOLPHIN_TORCH_INDEX=index)
    assert mended.returncode == 0, mended.stderr
    assert python_of(tmp_path / "second") == "for an older CUDA"


def test_a_node_without_docker_where_the_job_asks_for_it_is_bad_input(tmp_path: Path) -> None:
    done = node(
        tmp_path / "node", DOLPHIN_CONTAINER="docker", DOLPHIN_IMAGE="me/dolphin:1", DOCKER_HOST="unix:///nowhere"
    )
    assert done.returncode == 64
    assert "this node has no docker; set resources.container" in done.stderr
