"""Runs in a real container on a real engine: other results than at home, a lost run after a kill, root's files, a leaked secret."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import stat
import time
from pathlib import Path

import pytest

from tests.lab.docker import engine as lab
from tests.lab.docker.conftest import SECRET, USER_ID, User
from tests.support.dolphin_cli import Dolphin, wait_until
from trainer.run.run_folder import RunDir

LOCAL = {"LAB_TOKEN": SECRET}


def losses(run: Path) -> list[tuple]:
    """What a run computed, without what a clock says."""
    lines = RunDir(run).read_metrics()
    return [
        (line["step"], line.get("loss"), line.get("grad_norm"), line.get("lr"), line.get("eval_loss")) for line in lines
    ]


def weights_hash(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def only_run(dolphin: Dolphin) -> Path:
    [run_id] = dolphin.run_ids()
    return dolphin.home / "runs" / run_id


def launch(user: User, job: Path, image: str, *options: str) -> Path:
    user.run("launch", job, "--on", "docker", "-y", "--set", f"resources.image={image}", *options)
    return only_run(user)


def containers(engine, run: Path, **options) -> list:
    with contextlib.closing(engine.client()) as client:
        return client.containers.list(all=True, filters={"label": f"dolphin.run={run.name}"}, **options)


def saved_step(run: Path) -> int:
    return max((e["step"] for e in RunDir(run).read_events() if e["event"] == "checkpoint_saved"), default=0)


def steps(run: Path) -> int:
    return max((line["step"] for line in RunDir(run).read_metrics()), default=0)


def assert_the_secret_is_nowhere(engine, image: str, home: Path, run: Path) -> None:
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert SECRET.encode() not in path.read_bytes(), path
    with contextlib.closing(engine.client()) as client:
        for container in containers(engine, run):
            assert SECRET not in json.dumps(client.api.inspect_container(container.id))
            assert SECRET.encode() not in container.logs()
        assert SECRET not in json.dumps(client.api.inspect_image(image)) + json.dumps(client.api.history(image))


def assert_everything_is_the_users(home: Path) -> None:
    owners = {path.lstat().st_uid for path in home.rglob("*")}
    assert owners == {USER_ID}


@pytest.fixture(scope="module")
def at_home(quickstart, tmp_path_factory) -> Path:
    """The same job as processes of this machine."""
    dolphin = Dolphin(tmp_path_factory.mktemp("local"), None, LOCAL)
    dolphin.run("launch", quickstart, "--on", "local", "-y")
    return only_run(dolphin)


def test_the_quickstart_in_a_container_computes_what_it_computes_at_home(user, engine, image, quickstart, at_home):
    run = launch(user, quickstart, image)
    assert losses(run) == losses(at_home)
    assert weights_hash(run) == weights_hash(at_home)
    status = user.status()
    assert (status["state"], status["exit_code"], status["step"]) == ("succeeded", 0, 24)
    [container] = containers(engine, run)
    inspected = container.attrs
    assert inspected["State"]["ExitCode"] == 0
    assert inspected["Config"]["User"] == f"{USER_ID}:{USER_ID}"
    assert inspected["HostConfig"]["NetworkMode"] == "none"
    writable = {mount["Destination"] for mount in inspected["Mounts"] if mount["RW"]}
    assert writable == {str(run), str(user.home / "cache")}
    assert_the_secret_is_nowhere(engine, image, user.home, run)
    assert_everything_is_the_users(user.home)
    assert json.loads((run / "train.json").read_text())["run_dir"] == str(run)

    user.run("down")
    assert containers(engine, run) == []
    assert user.status()["state"] == "succeeded", "what is done stays done when its container is removed"


def test_a_killed_container_resumes_to_the_same_weights(user, engine, image, quickstart, at_home):
    run = launch(user, quickstart, image, "-d")
    wait_until(lambda: saved_step(run) >= 8 and steps(run) >= 9)
    [container] = containers(engine, run)
    container.kill(signal="SIGKILL")
    status = wait_until(lambda: (s := user.status()) and s["state"] != "running" and s)
    assert status["state"] == "lost"
    assert "dolphin resume" in status["detail"]
    assert steps(run) < 24, "the container was not killed in mid-run"
    user.run("resume", run.name)
    assert weights_hash(run) == weights_hash(at_home)
    assert len(containers(engine, run)) == 1
    assert_the_secret_is_nowhere(engine, image, user.home, run)


def test_down_after_the_launcher_was_killed_saves_and_leaves_nothing(user, engine, image, quickstart):
    launcher = user.start("launch", quickstart, "--on", "docker", "-y", "--set", f"resources.image={image}")
    run = wait_until(lambda: only_run(user) if user.run_ids() else None)
    wait_until(lambda: steps(run) >= 2)
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate()
    assert user.status()["state"] == "running"
    assert "step" in user.run("logs", "--no-follow", expect=None).stdout
    [container] = containers(engine, run)
    inspected = json.dumps(container.attrs)
    assert SECRET not in inspected, "the secret can be inspected while the run lasts"

    user.run("down")
    assert json.loads((run / "outcome.json").read_text())["state"] == "preempted"
    assert saved_step(run) >= 2
    assert user.status()["state"] == "cancelled"
    with contextlib.closing(engine.client()) as client:
        assert client.containers.list(all=True) == []
        assert client.volumes.list() == []
    assert_everything_is_the_users(user.home)
    assert_the_secret_is_nowhere(engine, image, user.home, run)
    assert "nothing" in user.run("down").stderr


def test_a_restarted_engine_finds_its_run_again(user, engine, image, quickstart):
    run = launch(user, quickstart, image, "-d")
    wait_until(lambda: steps(run) >= 1)
    engine.stop()
    try:
        # A stopped engine stops its containers with time to save: the run folder knows how it ended, engine or not.
        assert user.status()["state"] == "preempted"
        refused = user.run("down", expect=4)
        assert "no Docker engine answers" in refused.stderr.splitlines()[-1]
    finally:
        engine.start()
    assert len(containers(engine, run)) == 1
    assert user.status()["state"] == "preempted"
    assert "step" in user.run("logs", "--no-follow", expect=None).stdout
    user.run("down")
    assert containers(engine, run) == []


def test_what_is_missing_is_one_line_that_says_what_to_do(user, image, quickstart):
    nowhere = User(user.home, None, user.extra_environment | {"DOCKER_HOST": "unix:///nowhere/docker.sock"})
    done = nowhere.run("launch", quickstart, "--on", "docker", "-y", "--set", f"resources.image={image}", expect=4)
    assert "/nowhere/docker.sock" in done.stderr.splitlines()[-1]
    assert "DOCKER_HOST names it: start that engine" in done.stderr.splitlines()[-1]
    done = user.run(
        "launch", quickstart, "--on", "docker", "-y", "--set", "resources.image=localhost:9/none:1", expect=4
    )
    assert "pulling localhost:9/none:1" in done.stderr.splitlines()[-1]
    assert user.status()["state"] == "failed"


def test_the_image_carries_the_trainer_and_no_compiler_cache(engine, image):
    with contextlib.closing(engine.client()) as client:
        inspected = client.images.get(image).attrs
        config = inspected["Config"]
        assert config["Entrypoint"] == ["python", "-m", "trainer.supervise"]
        assert config["Labels"]["org.opencontainers.image.version"]
        look = "import os, torch, trainer.sample; print(os.path.exists('/build'), os.path.exists('/opt/dolphin/app/launcher'))"
        out = client.containers.run(image, entrypoint=["python", "-c", look], network_mode="none", remove=True)
        assert out.split() == [b"False", b"False"]
        print(f"{inspected['Size'] / 1e9:.2f} GB")


def test_a_changed_trainer_rebuilds_no_wheel(engine, image, context, tmp_path):
    changed = context / "trainer" / "run" / "exits.py"
    before = changed.read_text()
    changed.write_text(f"{before}\n# {time.time_ns()}\n")
    try:
        name = lab.build_image(engine, context, tmp_path / "image.log")
    finally:
        changed.write_text(before)
    assert name != image
    assert "Installing collected packages" not in (tmp_path / "image.log").read_text()


def test_the_secrets_file_is_the_users_alone(user, engine, image, quickstart):
    """Seen in the moment before the trainer takes it."""
    seen: list[int] = []
    launcher = user.start("launch", quickstart, "--on", "docker", "-y", "-d", "--set", f"resources.image={image}")

    def look() -> bool:
        for path in user.home.glob("runs/*/.secrets.json"):
            with contextlib.suppress(FileNotFoundError):
                seen.append(stat.S_IMODE(path.stat().st_mode))
        return bool(seen) or launcher.poll() is not None

    wait_until(look)
    launcher.communicate(timeout=300)
    assert seen[:1] == [0o600]
    user.run("down", "--now")
    assert list(user.home.glob("runs/*/.secrets.json")) == []
