"""The docker backend through the suite that every backend passes, with the trainer that misbehaves on request."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator

import pytest

from launcher.backends.base import get_backend
from launcher.jobfile.load import load_job
from launcher.jobfile.settle import Placement, settle
from launcher.runs import ledger
from tests.contract.test_backend import *  # noqa: F403
from tests.contract.test_backend import Bench
from tests.support.dolphin_cli import FAKE_TRAINER, write_job
from trainer.run.run_folder import write_atomic


@pytest.fixture(scope="module")
def fake_image(engine, image) -> str:
    """dolphin's image with the stand-in in front of the trainer."""
    name = "dolphin-lab-fake:1"
    dockerfile = f"FROM {image}\nCOPY fake /opt/dolphin/app/tests/support/fake_trainer\nENV PYTHONPATH=/opt/dolphin/app/tests/support/fake_trainer:/opt/dolphin/app\n"
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        archive.addfile(entry, io.BytesIO(dockerfile.encode()))
        archive.add(FAKE_TRAINER, "fake")
    context.seek(0)
    with contextlib.closing(engine.client()) as client:
        client.images.build(fileobj=context, custom_context=True, tag=name, rm=True)
    return name


@pytest.fixture
def bench(engine, fake_image, tmp_path, monkeypatch) -> Iterator[Bench]:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job = load_job(write_job(tmp_path / "job", resources={"ranks_per_node": 2, "image": fake_image}))
    yield Bench(get_backend("docker"), job)
    for record in ledger.all_runs():
        assert get_backend("docker").down(record, 0).is_gone


def test_a_trainer_that_vanished_is_lost_never_running(bench, engine):
    """In place of the suite's: the first process of a container cannot kill itself, so the engine does it."""
    record = bench.submit(steps=3000, pause_s=0.02)
    bench.reached(record, 1)
    with contextlib.closing(engine.client()) as client:
        client.containers.get(record.handle["container"]).kill(signal="SIGKILL")
    assert bench.end(record) is RunState.LOST  # noqa: F405
    assert "resume" in bench.backend.status(record).detail


def test_a_name_that_is_taken_says_so(bench, engine, fake_image):
    record = bench.record()
    with contextlib.closing(engine.client()) as client:
        other = client.containers.create(fake_image, name=f"dolphin-{record.run_id}")
        try:
            with pytest.raises(BackendError, match="docker rm"):  # noqa: F405
                bench.submit(record, steps=1)
        finally:
            other.remove()


def test_a_gpu_that_the_engine_cannot_give_says_what_to_install(bench, fake_image):
    record = bench.record()
    place = Placement(str(record.folder), str(ledger.cache_dir()), 1, "cuda")
    train = settle(bench.job, place, run_id=record.run_id, zero=0)
    write_atomic(record.files.train_json, train.model_dump_json())
    with pytest.raises(BackendError, match="nvidia-container-toolkit"):  # noqa: F405
        bench.submit(record, steps=1)
    assert bench.backend.find(record.run_id) is None


def test_a_folder_that_went_away_is_not_made_by_root(bench, tmp_path):
    record = bench.record()
    (tmp_path / "job" / "base" / "config.json").unlink()
    (tmp_path / "job" / "base" / "tokenizer.json").unlink()
    (tmp_path / "job" / "base").rmdir()
    with pytest.raises(BadUsage, match=r"model\.base: .* cannot be read"):  # noqa: F405
        bench.submit(record, steps=1)
    assert not (tmp_path / "job" / "base").exists()
