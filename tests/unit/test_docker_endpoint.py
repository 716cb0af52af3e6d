"""The engine that `docker ps` talks to is the engine that dolphin talks to, and a container's files belong to who started it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.backends import confinement
from launcher.backends.checks import Health
from launcher.backends.docker import doctor, engine, trial
from launcher.backends.docker.endpoint import DEFAULT_HOST, endpoint, local_socket
from launcher.runs.errors import BackendError

MINE = "unix:///run/user/1000/docker.sock"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def add_context(folder: Path, name: str, host: str, *, is_current: bool = False) -> None:
    meta = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}))
    if is_current:
        (folder / "config.json").write_text(json.dumps({"currentContext": name}))


def test_the_usual_socket_where_nothing_says_otherwise(home: Path) -> None:
    assert endpoint().host == DEFAULT_HOST
    (home / ".docker").mkdir()
    (home / ".docker" / "config.json").write_text('{"currentContext": "default"}')
    assert endpoint().host == DEFAULT_HOST
    (home / ".docker" / "config.json").write_text("torn {")
    assert endpoint().host == DEFAULT_HOST


def test_the_current_context_is_followed(home: Path) -> None:
    add_context(home / ".docker", "mine", MINE, is_current=True)
    assert local_socket() == "/run/user/1000/docker.sock"
    assert endpoint().origin == "docker context mine"


def test_the_order_is_the_client_s(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_context(home / ".docker", "mine", MINE, is_current=True)
    add_context(home / ".docker", "other", "unix:///other.sock")
    monkeypatch.setenv("DOCKER_CONTEXT", "other")
    assert local_socket() == "/other.sock"
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert endpoint().host == DEFAULT_HOST
    monkeypatch.setenv("DOCKER_HOST", "unix:///stated.sock")
    assert local_socket() == "/stated.sock"


def test_another_folder_of_the_client_is_used_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_context(home / "elsewhere", "mine", MINE, is_current=True)
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "elsewhere"))
    assert endpoint().host == MINE


def test_a_context_that_is_no_more_is_named_and_not_passed_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "gone")
    with pytest.raises(BackendError, match=r"DOCKER_CONTEXT is 'gone'.*docker context ls"):
        endpoint()


@pytest.mark.parametrize("host", ["tcp://far-away:2375", "ssh://me@far-away"])
def test_an_engine_of_another_machine_is_refused_by_launch_and_doctor_alike(home: Path, host: str) -> None:
    add_context(home / ".docker", "far", host, is_current=True)
    with pytest.raises(BackendError, match="docker context far names"):
        local_socket()
    (daemon,) = [finding for finding in doctor.checks() if finding.subject == "daemon"]
    assert daemon.health is Health.MISSING
    assert "far-away" in daemon.advice


def test_launch_asks_the_context_s_engine_and_says_what_named_it(home: Path) -> None:
    pytest.importorskip("docker", reason="docker: the extra [docker] is not installed")
    add_context(home / ".docker", "mine", f"unix://{home}/none.sock", is_current=True)
    with pytest.raises(BackendError, match=r"none\.sock"):
        engine.connect()
    gone = FileNotFoundError(2, "No such file or directory")
    said = str(engine._unreachable("/none.sock", "docker context mine", gone))
    assert "docker context mine names it: start that engine" in said
    assert "install Docker Engine" not in said


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["seccomp", "cgroupns"], {"user": "1000:1001"}),
        (["seccomp", "rootless"], {"user": "0:0"}),
        (["userns"], {"user": "1000:1001", "userns_mode": "host"}),
    ],
)
def test_the_process_is_this_user_whatever_the_engine_maps(options: list[str], settings: dict[str, str]) -> None:
    assert confinement.user_of(options, "1000:1001") == settings


def test_an_engine_s_options_are_read_as_it_writes_them() -> None:
    stated = ["name=apparmor", "name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"]
    client = SimpleNamespace(info=lambda: {"SecurityOptions": stated})
    pytest.importorskip("docker", reason="docker: the extra [docker] is not installed")
    assert engine.security_options(client) == ["apparmor", "seccomp", "rootless", "cgroupns"]
    assert engine.security_options(SimpleNamespace(info=lambda: {"SecurityOptions": None})) == []


class Engine:
    """An engine whose containers run here, as processes: `maps` writes files as another user or elsewhere."""

    def __init__(self, root: Path, *, misbehaves: str = "", options: tuple[str, ...] = ()) -> None:
        self.root, self.misbehaves, self.options = root, misbehaves, options
        self.images: Any = self
        self.containers: Any = self
        self.api = self
        self.there: set[str] = set()

    def info(self) -> dict[str, Any]:
        return {"Architecture": os.uname().machine, "SecurityOptions": [f"name={option}" for option in self.options]}

    def import_image_from_data(self, data: bytes, repository: str, tag: str) -> None:
        with tarfile.open(fileobj=BytesIO(data)) as archive:
            archive.extractall(self.root, filter="tar")
        self.there.add(f"{repository}:{tag}")

    def create(self, image: str, *, entrypoint: list[str], working_dir: str, **settings: Any) -> Engine:
        self.settings, self.command, self.folder = settings, [str(self.root / entrypoint[0].lstrip("/"))], working_dir
        self.there.add("container")
        return self

    def start(self) -> None:
        import docker.errors

        if self.misbehaves == "runc":
            raise docker.errors.APIError(
                "runc create failed", explanation="chdir to cwd set in config.json: permission denied"
            )

    def wait(self, timeout: float) -> dict[str, int]:
        folder = {"elsewhere": str(self.root), "read-only": "/proc"}.get(self.misbehaves, self.folder)
        return {"StatusCode": subprocess.run(self.command, cwd=folder, check=False).returncode}

    def remove(self, image: str = "container", force: bool = False) -> None:
        self.there.discard(image)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the trial's program is for x86-64")
@pytest.mark.parametrize(
    ("misbehaves", "said"),
    [
        ("", None),
        ("runc", "permission denied"),
        ("elsewhere", "does not arrive here"),
        ("read-only", "cannot write to folders of this machine"),
    ],
)
def test_doctor_starts_a_container_and_leaves_nothing(tmp_path: Path, misbehaves: str, said: str | None) -> None:
    pytest.importorskip("docker", reason="docker: the extra [docker] is not installed")
    root, folder = tmp_path / "root", tmp_path / "runs"
    root.mkdir()
    folder.mkdir()
    it = Engine(root, misbehaves=misbehaves, options=("userns",))
    problem = trial.problem_of(it, folder)
    assert (problem is None) if said is None else (said in (problem or ""))
    assert it.settings["userns_mode"] == "host"
    assert it.there == set()
    assert list(folder.iterdir()) == []


def test_doctor_says_of_no_container_that_it_started_where_none_was_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    found = doctor._container(SimpleNamespace(info=lambda: {"Architecture": "aarch64"}))
    assert (found.health, found.found) == (Health.NOTE, "none was tried")
