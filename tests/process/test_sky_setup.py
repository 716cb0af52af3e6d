"""What SkyPilot runs on a new node before the trainer: a second node that shares the folder must install nothing again."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from launcher.backends.sky.task import template_text
from trainer.supervise import spot_notices

SETUP, RUN = (yaml.safe_load(template_text())[part] for part in ("setup", "run"))


def run_variables(folder: Path, cloud: str, **environment: str) -> dict[str, str]:
    """What `run` hands to the relay on a node of this cloud."""
    inputs = folder / "dolphin-inputs"
    inputs.mkdir(exist_ok=True)
    (inputs / "relay.json").write_text("{}")
    (inputs / "relay.py").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    (folder / ".dolphin-node").write_text("export DOLPHIN_CONTAINER=none\n")
    info = json.dumps({"cluster_name": "demo-1", "cloud": cloud, "region": "r", "zone": None})
    settings = {"HOME": str(folder), "PATH": os.environ["PATH"], "SKYPILOT_CLUSTER_INFO": info, **environment}
    done = subprocess.run(["bash", "-c", RUN], env=settings, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_a_node_of_a_cloud_that_gives_notice_listens_for_it(tmp_path: Path) -> None:
    """Eighteen steps were lost at a reclaim that had been announced two minutes before: nobody had asked."""
    own = "http://169.254.169.254"
    assert run_variables(tmp_path, "AWS")["DOLPHIN_AWS_METADATA"] == own
    assert run_variables(tmp_path, "GCP")["DOLPHIN_GCP_METADATA"] == own
    told = run_variables(tmp_path, "AWS", AWS_EC2_METADATA_SERVICE_ENDPOINT="http://127.0.10.1:80")
    assert told["DOLPHIN_AWS_METADATA"] == "http://127.0.10.1:80"
    for cloud, wish in (("Slurm", ""), ("AWS", "off")):
        heard = run_variables(tmp_path, cloud, DOLPHIN_NOTICES=wish)
        assert not [name for name in heard if name.endswith("_METADATA")]
    listening = {name: value for name, value in told.items() if name.startswith("DOLPHIN_")}
    (service,) = spot_notices.services(listening)
    assert isinstance(service, spot_notices.AwsService)


def test_keys_that_came_to_the_node_are_found_in_docker_on_it_too(tmp_path: Path) -> None:
    assert "AWS_SHARED_CREDENTIALS_FILE" not in run_variables(tmp_path, "GCP")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\n")
    assert run_variables(tmp_path, "GCP")["AWS_SHARED_CREDENTIALS_FILE"] == f"{tmp_path}/.aws/credentials"


def node(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `setup` as on a node of its own, whose home is `folder`; the virtual environments' folder is shared."""
    (folder / "dolphin-inputs").mkdir(parents=True, exist_ok=True)
    (folder / "dolphin-inputs" / "requirements.txt").write_text("torch>=2.13,<2.14\n")
    (folder / "dolphin-inputs" / "constraints.txt").write_text("# what was tested\ntorch==2.13.0\n")
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


def write_wheel(folder: Path, version: str) -> None:
    info = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch.py", f"__version__ = '{version}, for an older CUDA'\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path) -> str:
    """A package index with a torch in it, of an own kind: newer than the one that was tested."""
    return make_index(tmp_path, "2.13.1")


def make_index(root: Path, *versions: str) -> str:
    folder = root / "index" / "torch"
    folder.mkdir(parents=True)
    for version in versions:
        write_wheel(folder, version)
    links = [f'<a href="torch-{version}-py3-none-any.whl">torch</a>' for version in versions]
    (folder / "index.html").write_text("".join(links))
    return f"file://{root}/index"


def test_the_trainer_is_installed_once_for_all_nodes_with_the_torch_that_was_asked_for(
    tmp_path: Path, index: str
) -> None:
    alone = {"PIP_CONFIG_FILE": os.devnull, "DOLPHIN_TORCH_INDEX": index}
    first = node(tmp_path / "first", **alone)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("installing the trainer into") == 1
    second = node(tmp_path / "second", **alone)
    assert (second.returncode, second.stdout) == (0, ""), second.stderr
    assert python_of(tmp_path / "first") == python_of(tmp_path / "second") == "2.13.1, for an older CUDA"


def test_an_installation_that_fails_is_one_line_and_is_made_anew_by_the_next_node(tmp_path: Path, index: str) -> None:
    broken = node(tmp_path / "first", PIP_CONFIG_FILE=os.devnull, DOLPHIN_TORCH_INDEX=f"file://{tmp_path}/nothing")
    assert broken.returncode == 1
    assert broken.stderr.splitlines()[-1].startswith("dolphin: the trainer cannot be installed on this node")
    mended = node(tmp_path / "second", PIP_CONFIG_FILE=os.devnull, DOLPHIN_TORCH_INDEX=index)
    assert mended.returncode == 0, mended.stderr
    assert python_of(tmp_path / "second") == "2.13.1, for an older CUDA"


def test_a_node_without_docker_where_the_job_asks_for_it_is_bad_input(tmp_path: Path) -> None:
    done = node(
        tmp_path / "node", DOLPHIN_CONTAINER="docker", DOLPHIN_IMAGE="me/dolphin:1", DOCKER_HOST="unix:///nowhere"
    )
    assert done.returncode == 64
    assert "this node has no docker; set resources.container" in done.stderr


def test_a_node_of_tomorrow_installs_the_versions_of_today(tmp_path: Path) -> None:
    """Without them a node that takes a run over would train on with whatever had come out in the meantime."""
    index = make_index(tmp_path, "2.13.0", "2.13.1")
    done = node(tmp_path / "node", PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=index)
    assert done.returncode == 0, done.stderr
    assert python_of(tmp_path / "node").startswith("2.13.0")


def test_a_network_that_fails_for_a_while_ends_no_run(tmp_path: Path) -> None:
    folder = Path(make_index(tmp_path, "2.13.0").removeprefix("file://"))
    failures = iter(range(2))  # pip asks once more by itself

    class Index(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if next(failures, None) is not None:
                return self.send_error(503)
            return super().do_GET()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    settings = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "1",
        "PIP_INDEX_URL": url,
        "DOLPHIN_INSTALL_PAUSES": "0 0",
    }
    done = node(tmp_path / "node", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trying again") == 1
    server.shutdown()
    server.server_close()
    down = node(tmp_path / "other", **settings, DOLPHIN_VENV="venv-other")
    assert down.returncode == 75, "a node elsewhere may reach it"
    assert down.stdout.count("trying again") == 2
    where = f"127.0.0.1:{server.server_port} cannot be reached from this node"
    assert down.stderr.splitlines()[-1] == f"dolphin: {where} now; another node is tried"
    hours_ago = str(int(time.time()) - 7200)
    late = node(tmp_path / "late", **settings, DOLPHIN_VENV="venv-late", DOLPHIN_SUBMITTED_AT=hours_ago)
    assert late.returncode == 1, "node after node would be paid for, for ever"
    assert late.stdout.count("trying again") == 2
    assert late.stderr.splitlines()[-1].startswith(f"dolphin: {where}, after 3 tries;")
