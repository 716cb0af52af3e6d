"""A resume with nothing changed reads train.json as it is: a plan of it costs seconds, and nobody reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.backends.base import Abilities, BackendStatus
from launcher.commands import launch
from launcher.jobfile.load import load_job
from launcher.jobfile.settle import Placement
from launcher.runs import ledger
from launcher.runs.states import RunState
from tests.support.dolphin_cli import write_job


class Reached(Exception):
    """The resume came to what follows the plan."""


class Backend:
    abilities = Abilities()

    name = "local"

    def status(self, record) -> BackendStatus:
        return BackendStatus(RunState.LOST)

    def offers(self, job, nproc) -> list:
        return []

    def place(self, job, run_id, folder, nproc) -> Placement:
        return Placement(str(folder), str(folder), nproc or 2, "cpu")

    def preflight(self, job, train, options) -> list[str]:
        raise Reached


@pytest.mark.parametrize(("overrides", "num_plans"), [((), 0), (("train.log_every=5",), 1)])
def test_a_plan_is_made_where_something_was_changed_alone(tmp_path: Path, monkeypatch, overrides, num_plans) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home"))
    plans = []
    monkeypatch.setattr(launch, "plan_of", lambda *_, **__: plans.append(1))
    monkeypatch.setattr(launch, "get_backend", lambda name: Backend())
    path = write_job(tmp_path / "job")
    record = ledger.create(ledger.new_id("demo"), "demo", "local")
    start = launch.Start.of(load_job(path), Backend(), None, {}, is_planned=False)
    job, train = start.settled(record.run_id)
    record.files.job.write_text(launch.write_yaml(job.model_dump(mode="json", exclude_unset=True)))
    record.files.train_json.write_text(train.model_dump_json())
    with pytest.raises(Reached):
        launch.resume(record, launch.LaunchOptions(overrides=overrides))
    assert len(plans) == num_plans
