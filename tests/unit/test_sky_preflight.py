"""What a launch on a cloud is refused for, before a person is asked, a record is made or a byte is sent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.backends.sky import store_access
from launcher.backends.sky.backend import SkyRuns
from launcher.jobfile.spec import JobSpec
from launcher.runs import ledger
from launcher.runs.errors import BackendError, BadUsage
from trainer.run.spec import NodeJob


@pytest.fixture(autouse=True)
def _no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried in tests/contract/test_store_from_home.py, where there is one."""
    monkeypatch.setenv(store_access.PROBE_VARIABLE, "off")


class Sky:
    """A SkyPilot that knows one cloud and some jobs; it would fail loudly were anything started."""

    def __init__(self, *running: str, refuses: str = "") -> None:
        self.running, self.refuses, self.checked = [ledger.new_id(name) for name in running], refuses, 0

    def enabled(self) -> list[str]:
        return ["aws"]

    def jobs(self, part: str, *, active_only: bool) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=run_id, status="RUNNING", job_id=1) for run_id in self.running if part in run_id]

    def check_task(self, task: dict[str, Any]) -> None:
        self.checked += 1
        assert "file_mounts" not in task, "SkyPilot would look for files that are not staged yet"
        if self.refuses:
            raise BadUsage(self.refuses)


def job_of(folder: Path, **more: Any) -> JobSpec:
    (folder / "data.jsonl").write_text("x" * 2000)
    return JobSpec.model_validate({
        "name": "demo",
        "model": {"base": "owner/base"},
        "data": {"sources": [{"path": str(folder / "data.jsonl")}]},
        "checkpoint": {"store": "s3://bucket/runs"},
        "resources": {"accelerators": "L40S:1", "max_upload_gb": 1e-5},
    } | more)  # fmt: skip


def preflight(job: JobSpec, sky: Sky, **options: Any) -> list[str]:
    train = NodeJob(
        run_id="demo-1", run_dir="/d/demo-1", cache_dir="/d/cache", nproc=1, device="cuda", spec=job.train_spec()
    )
    return SkyRuns(sky).preflight(job, train, options)


def test_how_much_leaves_this_machine_is_said_before_the_question(tmp_path: Path) -> None:
    sky = Sky()
    (line,) = preflight(job_of(tmp_path), sky)
    assert line.startswith("sends 1 file of this machine, 2.0 kB")
    assert sky.checked == 1


def test_too_much_to_send_is_refused_before_the_question(tmp_path: Path) -> None:
    resources = {"accelerators": "L40S:1", "max_upload_gb": 1e-6}
    with pytest.raises(BadUsage, match="max_upload_gb"):
        preflight(job_of(tmp_path, resources=resources), Sky())


def test_a_run_that_would_lose_its_checkpoints_is_refused_before_the_question(tmp_path: Path) -> None:
    job = job_of(tmp_path, checkpoint={})
    with pytest.raises(BadUsage, match="--yes-lose-progress"):
        preflight(job, Sky())
    assert preflight(job, Sky(), yes_lose_progress=True)


def test_a_second_job_of_one_name_is_refused_before_the_question(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="a job of this name is running"):
        preflight(job_of(tmp_path), Sky("demo"))


def test_what_skypilot_refuses_is_refused_before_the_question(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="no such region"):
        preflight(job_of(tmp_path), Sky(refuses="no such region"))


def test_a_server_that_does_not_answer_is_told_before_the_question(tmp_path: Path) -> None:
    sky = Sky()
    sky.enabled = lambda: (_ for _ in ()).throw(BackendError("the API server does not answer"))  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="does not answer"):
        preflight(job_of(tmp_path), sky)
