"""The image's tag: a changed trainer that runs in the old image, a build for every run, an error that says nothing."""

from __future__ import annotations

import pytest

from launcher.backends import release
from launcher.backends.docker import engine, image
from launcher.runs.errors import BackendError, BadUsage


@pytest.fixture
def root(tmp_path):
    for name in (
        "Dockerfile",
        "constraints.txt",
        "pyproject.toml",
        "trainer/rank/main.py",
        "launcher/cli.py",
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
    (root / "launcher/cli.py").write_text("something else")
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
