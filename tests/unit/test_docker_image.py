"""The image's tag: a changed trainer that runs in the old image, a build for every run, an error that says nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launcher.backends import release
from launcher.backends.docker import engine, image
from launcher.runs.errors import BackendError, BadUsage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    for name in (
        "Dockerfile",
        "constraints.txt",
        "pyproject.toml",
        "trainer/rank/main.py",
        "launcher/cli/main.py",
        "wheels/a-1-py3-none-any.whl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    "changed",
    ["Dockerfile", "constraints.txt", "trainer/rank/main.py", "trainer/new.py", "wheels/b-1-py3-none-any.whl"],
)
def test_what_goes_into_the_image_is_in_its_tag(root, changed):
    before = image.own_tag(root, {"VARIANT": "cpu"})
    (root / changed).write_text("something else")
    assert image.own_tag(root, {"VARIANT": "cpu"}) != before


def test_what_does_not_go_in_is_not(root):
    before = image.own_tag(root, {"VARIANT": "cpu"})
    (root / "launcher/cli/main.py").write_text("something else")
    (root / "trainer/rank/main.pyc").write_text("x")
    assert image.own_tag(root, {"VARIANT": "cpu"}) == before
    assert image.own_tag(root, {"VARIANT": "cuda"}) != before


def test_an_installation_without_a_dockerfile_says_what_to_do(tmp_path):
    with pytest.raises(BackendError, match=r"resources\.image"):
        image.own_tag(tmp_path, {"VARIANT": "cpu"})


def test_build_arguments_come_from_the_environment(monkeypatch):
    monkeypatch.setenv(image.BUILD_ARGS, "BASE_IMAGE=mine:1 EXTRAS='train track'")
    assert image.build_arguments("cpu") == {"VARIANT": "cpu", "BASE_IMAGE": "mine:1", "EXTRAS": "train track"}
    monkeypatch.setenv(image.BUILD_ARGS, "BASE_IMAGE")
    with pytest.raises(BadUsage, match="NAME=VALUE"):
        image.build_arguments("cpu")


def test_a_release_pulls_its_own_image_and_a_checkout_builds_one(monkeypatch, tmp_path):
    monkeypatch.delenv(image.BUILD_ARGS, raising=False)
    assert image.to_pull(None, "cpu") is None, "a checkout has no images"
    (tmp_path / "images.json").write_text(
        '{"cpu": "r.example/dolphin@sha256:00", "cuda": "r.example/dolphin@sha256:01"}'
    )
    monkeypatch.setattr(release, "FILE", str(tmp_path / "images.json"))
    assert image.to_pull(None, "cpu") == "r.example/dolphin@sha256:00"
    assert image.to_pull(None, "cuda") == "r.example/dolphin@sha256:01"
    assert image.to_pull("mine:1", "cuda") == "mine:1"
    monkeypatch.setenv(image.BUILD_ARGS, "EXTRAS=train")
    assert image.to_pull(None, "cuda") is None, "build arguments would be ignored"


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', "nvidia-container-toolkit"),
        ("write /var/lib/docker/tmp: no space left on device", "docker system prune"),
        ('Conflict. The container name "/x" is already in use by container "0123". You have to remove', "docker rm"),
        ("pull access denied for mine, repository does not exist", "resources.image"),
        ("something nobody foresaw", "something nobody foresaw"),
    ],
)
def test_the_engines_errors_are_one_line_that_says_what_to_do(said, advice):
    line = engine.explain("starting", said)
    assert advice in line
    assert "\n" not in line


def test_a_missing_engine_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("docker", reason="docker: the extra [docker] is not installed")
    monkeypatch.setenv("DOCKER_HOST", "tcp://far-away:2375")
    with pytest.raises(BackendError, match="engine on it"):
        engine.connect()


def test_a_tag_is_no_port():
    assert image._repository_and_tag("host:5000/a/b") == ("host:5000/a/b", "latest")
    assert image._repository_and_tag("host:5000/a/b:1") == ("host:5000/a/b", "1")
    assert image._repository_and_tag("a@sha256:00") == ("a@sha256:00", None)


def flash_stage(tmp_path, **arguments):
    """Run the shell of the image's flash stage with a pip that only says how it was called."""
    stage = (ROOT / "Dockerfile").read_text().split("FROM stack AS flash")[1].split("FROM ")[0]
    shell = stage.split("RUN ")[1].replace("/flash", str(tmp_path / "flash"))
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    env = {
        "PATH": f"{tmp_path}{os.pathsep}{os.defpath}",
        "FLASH_ATTN_VERSION": "==2.8.*",
        "VARIANT": "cuda",
        **arguments,
    }
    return subprocess.run(["sh", "-c", shell], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", [{"FLASH_ATTN": "none"}, {"FLASH_ATTN": ""}, {"FLASH_ATTN": "build", "VARIANT": "cpu"}]
)
def test_an_image_without_other_kernels_asks_no_index_for_them(tmp_path, arguments):
    done = flash_stage(tmp_path, **arguments)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "flash").is_dir(), "a later stage copies it"


def test_kernels_are_built_or_handed_in_and_nothing_else_is_tried(tmp_path):
    assert "--no-build-isolation" in flash_stage(tmp_path, FLASH_ATTN="build").stdout
    wheels = "https://example.org/a/flash_attn-2.8.3-cp312.whl wheels/flash_attn_3-3.0.0.whl"
    assert flash_stage(tmp_path, FLASH_ATTN=wheels).stdout.strip().endswith(wheels)
    refused = flash_stage(tmp_path, FLASH_ATTN="wheel")
    assert refused.returncode == 1
    assert "write none, build, or the URL or file of a wheel" in refused.stderr
