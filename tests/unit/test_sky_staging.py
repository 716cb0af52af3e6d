"""A recovery an hour later reads the staged files again: they stay as long as the run may need them, and no longer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.backends.sky.backend import SkyRuns
from launcher.backends.sky.task import STAGED
from launcher.follow.status import observe
from launcher.runs import ledger
from launcher.runs.ledger import RunRecord


class Sky:
    """One managed job in a state."""

    def __init__(self, run_id: str, status: str) -> None:
        self.run_id, self.job_status = run_id, status

    def jobs(self, part: str, *, active_only: bool) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(name=self.run_id, status=self.job_status, job_id=1, infra="aws", cluster=None, recoveries=0,
                            submitted_at=1.0, ended_at=None, reason=None, spot=True, is_cleaned_up=True)
        ]  # fmt: skip

    def tail_managed(self, job_id: int, follow: bool, stream: object) -> None:
        return


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    record = ledger.create("demo-1", "demo", "sky")
    (record.folder / STAGED / "0").mkdir(parents=True)
    return ledger.update(record, handle={"kind": "managed", "job_id": 1}, submissions=1)


@pytest.mark.parametrize(
    ("status", "stays"),
    [
        ("RUNNING", True),
        ("RECOVERING", True),
        ("PENDING", True),
        ("NEVER_HEARD_OF", True),
        ("SUCCEEDED", False),
        ("FAILED", False),
    ],
)
def test_staged_files_stay_until_the_run_is_over(record: RunRecord, status: str, stays: bool) -> None:
    SkyRuns(Sky(record.run_id, status)).status(record)
    assert (record.folder / STAGED).exists() == stays


def test_a_resume_that_stages_anew_is_not_robbed_by_a_look_at_the_job_before(record: RunRecord) -> None:
    sky = SkyRuns(Sky(record.run_id, "FAILED"))
    with ledger.locked(record) as held:
        sky.status(held)
    sky.status(ledger.update(record, handle=None))
    assert (record.folder / STAGED).exists()


def test_one_look_at_a_run_asks_for_its_job_once(record: RunRecord) -> None:
    """A controller of its own takes 3 to 45 s for an answer."""
    sky = Sky(record.run_id, "RUNNING")
    asked, jobs = [], sky.jobs
    sky.jobs = lambda part, **which: asked.append(part) or jobs(part, **which)  # type: ignore[method-assign]
    observe(SkyRuns(sky), record)
    assert asked == [record.run_id]
