"""A submit that fails leaves a bucket with the job's data behind, which nobody looks for and somebody pays; another submit's must
stay."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.backends.sky.answers import ControllerAway, ControllerStopped
from launcher.backends.sky.uploads import Uploads
from launcher.runs.errors import BackendError


class Sky:
    def __init__(self) -> None:
        self.buckets = {"skypilot-filemounts-me-1"}
        self.pending: str | None = None
        self.active: list[SimpleNamespace] = []
        self.problem: BackendError | None = None

    def uploads(self) -> set[str]:
        return set(self.buckets)

    def delete_upload(self, name: str) -> None:
        self.buckets.remove(name)

    def pending_launch(self, run_id: str) -> str | None:
        return self.pending

    def jobs(self, part: str, *, active_only: bool) -> list[SimpleNamespace]:
        if self.problem is not None:
            raise self.problem
        return self.active


@pytest.fixture
def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sky:
    monkeypatch.setenv("HOME", str(tmp_path))
    return Sky()


def failed_submit(sky: Sky, *came: str, is_managed: bool = True) -> list[str]:
    told: list[str] = []
    uploads = Uploads(sky, is_managed=is_managed)
    sky.buckets |= {f"skypilot-filemounts-me-{name}" for name in came}
    uploads.remove(told.append)
    return told


@pytest.mark.parametrize("problem", [None, ControllerStopped("asleep")])
def test_the_bucket_of_a_submit_that_failed_is_removed(sky: Sky, problem: BackendError | None) -> None:
    sky.problem = problem
    sky.active = [SimpleNamespace(submitted_at=1.0)]
    assert failed_submit(sky, "2") == []
    assert sky.buckets == {"skypilot-filemounts-me-1"}


def test_what_may_be_another_submits_stays_and_is_told(sky: Sky) -> None:
    (line, other) = failed_submit(sky, "2", "3")
    assert "sky storage delete skypilot-filemounts-me-2" in line
    assert "me-3" in other
    sky.pending = "r-1"
    assert len(failed_submit(sky, "4")) == 1
    sky.pending, sky.active = None, [SimpleNamespace(submitted_at=4e9)]
    assert len(failed_submit(sky, "5")) == 1
    sky.problem = ControllerAway("does not answer")
    assert len(failed_submit(sky, "6")) == 1
    assert len(sky.buckets) == 6


def test_where_there_is_no_such_bucket_nobody_is_asked(sky: Sky, tmp_path: Path) -> None:
    sky.uploads = lambda: pytest.fail("asked")  # type: ignore[method-assign]
    assert failed_submit(sky, is_managed=False) == []
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky" / "config.yaml").write_text("jobs: {controller: {consolidation_mode: true}}\n")
    assert failed_submit(sky) == []
