"""A run that its budget ends has a model to show, and goes on to the weights of an untouched one where it is given more."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.support import tiny_job
from trainer.run.limits import Limits
from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob

ALL = 4


def give(run: RunDir, limits: Limits) -> None:
    job = NodeJob.read(run.train_json)
    run.train_json.write_text(job.model_copy(update={"limits": limits}).model_dump_json())


def train(run: RunDir, *, expect: int) -> None:
    """With the data of another run: nothing is paid before the ranks start."""
    with open(run.log, "ab") as log:
        command = [*tiny_job.command(run), "--prepare", "none"]
        done = subprocess.run(command, stdout=log, stderr=log, env=tiny_job.environment(), timeout=tiny_job.TIMEOUT_S)
    assert done.returncode == expect, run.log.read_text()[-3000:]


def test_a_run_that_its_budget_ended_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    job = {"nproc": 2, "train": {"max_steps": ALL, "zero": 1}, "checkpoint": {"every": {"steps": 2}}}
    untouched = tiny_job.train(tiny_job.write_job(tmp_path, "untouched", **job))
    run = tiny_job.write_job(tmp_path, "poor", **job)
    give(run, Limits(budget_usd=1e-6, price_usd_per_hour=3.0, planned_hours=1.0, planned_usd=3.0))
    shutil.copy(untouched.prepared, run.prepared)
    train(run, expect=76)
    outcome = json.loads(run.outcome.read_text())
    assert (outcome["state"], outcome["step"], outcome["total_steps"]) == ("budget_reached", 1, ALL)
    assert outcome["reason"].startswith("$0.0")
    assert outcome["paid"]["usd"] > 0
    assert outcome["planned"] == {"hours": 1.0, "usd": 3.0}
    assert Path(outcome["model"], "config.json").exists()
    card = Path(outcome["model"], "README.md").read_text()
    assert f"at step 1 of {ALL}" in card, "a model that is not done says so"
    assert "| planned | 1.0 h, $3.00 |" in card
    partial = tiny_job.weights_sha256(run)
    give(run, Limits(budget_usd=1e6, price_usd_per_hour=3.0))
    train(run, expect=0)
    assert "step 1 of" not in Path(outcome["model"], "README.md").read_text()
    assert tiny_job.weights_sha256(run) == tiny_job.weights_sha256(untouched) != partial
    assert tiny_job.losses(run) == tiny_job.losses(untouched)
    (done,) = [json.loads(run.outcome.read_text())]
    assert done["paid"]["hours"] > outcome["paid"]["hours"], "both starts were paid for"
