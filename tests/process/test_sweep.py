"""The real `dolphin sweep`, killed in between: no cell has two runs, losers save and stop, the table is best first."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.runs.sweep import Sweep
from tests.support.dolphin_cli import Dolphin, wait_until, write_job


def test_a_sweep_that_was_killed_goes_on_with_its_runs(tmp_path: Path) -> None:
    job = write_job(
        tmp_path / "job", data={"sources": [{"path": "./data.jsonl"}], "sequence_length": 64, "validation_count": 1}
    )
    dolphin = Dolphin(tmp_path / "home", {"steps": 4, "pause_s": 0.5})
    rates = ("--set", "train.learning_rate=2e-5,1e-5")
    command = dolphin.start("sweep", job, *rates, "--on", "local", "-y")
    wait_until(lambda: dolphin.run_ids())
    command.kill()
    command.communicate()
    (name,) = [path.name for path in (tmp_path / "home" / "sweeps").iterdir()]
    assert len(dolphin.run_ids()) == 1

    done = json.loads(dolphin.run("sweep", "--resume", name, "--json").stdout)

    assert {run["state"] for run in done["runs"]} == {"succeeded"}
    assert len({run["run"] for run in done["runs"]}) == 2
    records = [json.loads(path.read_text()) for path in (tmp_path / "home" / "runs").glob("*/record.json")]
    submitted = [record["name"] for record in records if record["submissions"]]
    assert sorted(submitted) == [f"{name}-1", f"{name}-2"]
    again = json.loads(dolphin.run("sweep", "--resume", name, "--json").stdout)
    assert again["runs"] == done["runs"]
    job.write_text(job.read_text() + "\n")
    assert "was changed" in dolphin.run("sweep", "--resume", name, expect=2).stderr


def test_the_worse_half_saves_and_stops(tmp_path: Path) -> None:
    job = write_job(
        tmp_path / "job", data={"sources": [{"path": "./data.jsonl"}], "sequence_length": 64, "validation_count": 1}
    )
    dolphin = Dolphin(tmp_path / "home", {"steps": 40, "pause_s": 0.5, "evaluate_every": 4})

    out = dolphin.run(
        "sweep", job, "--set", "train.learning_rate=1e-5,2e-5", "--parallel", "2", "--on", "local", "-y", "--json"
    )

    best, worst = json.loads(out.stdout)["runs"]
    assert (best["state"], best["settings"]) == ("succeeded", ["train.learning_rate=1e-5"])
    assert (worst["state"], worst["settings"]) == ("stopped early", ["train.learning_rate=2e-5"])
    assert worst["step"] < 40
    sweep = Sweep.read(tmp_path / "home" / "sweeps" / json.loads(out.stdout)["sweep"] / "sweep.json")
    assert [cell.was_stopped for cell in sweep.cells] == [False, True]
