"""One engine, one image and one quickstart for all tests here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.docker import engine as lab
from tests.support.dolphin_cli import Dolphin
from tests.support.require import lacking

USER_ID = 12345
"""Not root: what the container writes must be the user's."""
SECRET = "tell-nobody-0452"


@pytest.fixture(scope="session")
def engine() -> Iterator[lab.Engine]:
    try:
        import docker  # noqa: F401
    except ImportError:
        lacking("docker", "the extra [docker] is not installed")
    reason = lab.why_not("docker" in os.environ.get("DOLPHIN_REQUIRE", ""))
    if reason is not None:
        lacking("docker", reason)
    with lab.running_engine(group=USER_ID) as started:
        yield started


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lab.image_context(tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="session")
def image(engine: lab.Engine, context: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """dolphin's own image, built as `dolphin launch` builds it."""
    log = tmp_path_factory.mktemp("image") / "image.log"
    name = lab.build_image(engine, context, log)
    said: list[str] = []
    assert lab.build_image(engine, context, log, said.append) == name
    assert said == [], "an image that is there was built again"
    return name


@dataclass
class User(Dolphin):
    """`dolphin` run by an ordinary user, who may read this checkout (a capability) and use the engine (a group)."""

    def start(self, *arguments, **popen):
        may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        command = ["setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups", *may_read]
        command += [str(Path(sys.executable).with_name("dolphin")), *map(str, arguments)]
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self.environment, text=True, **(options | popen))


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory(prefix="dolphin-lab-", dir="/var/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def user(engine: lab.Engine, open_folder: Path) -> Iterator[User]:
    home = Path(tempfile.mkdtemp(prefix="home-", dir=open_folder))
    os.chown(home, USER_ID, USER_ID)
    secret = {"DOCKER_HOST": engine.host, "HOME": str(home), "LAB_TOKEN": SECRET}
    yield User(home, None, secret)
    with contextlib.closing(engine.client()) as client:
        for container in client.containers.list(all=True, filters={"label": "dolphin.run"}):
            container.remove(force=True, v=True)


@pytest.fixture(scope="session")
def quickstart(open_folder: Path) -> Path:
    """The quickstart's job beside its files, shortened, and with a secret."""
    folder = open_folder / "quickstart"
    folder.mkdir()
    example = lab.ROOT / "examples" / "quickstart"
    subprocess.run([sys.executable, str(example / "build.py"), "--out", str(folder)], check=True, capture_output=True)
    text = (example / "job.yaml").read_text()
    text = text.replace("epochs: 2", "max_steps: 24").replace("{epochs: 1}", "{steps: 8}")
    (folder / "job.yaml").write_text(text + "\nsecrets: [LAB_TOKEN]\n")
    return folder / "job.yaml"
