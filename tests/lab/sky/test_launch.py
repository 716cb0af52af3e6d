"""`dolphin launch` on a cluster that takes nodes away: a real SkyPilot, a real Slurm, the quickstart on two CPU ranks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.sky_lab import ROOT, STEP_S, Followed, Lab, digest, until

STEPS = {"train.max_steps": "60", "checkpoint.every.epochs": "null", "checkpoint.every.steps": "10"}
LONG = {**STEPS, "train.max_steps": "250", "resources.memory_gb": "2"}
"""Still training when an API server that was stopped is back; on a node of which some memory is asked for."""


@pytest.fixture(scope="module")
def reclaimed(lab: Lab) -> dict[str, Any]:
    """A run that lost its node and its API server in mid-training, followed to its end by the one launch command."""
    launch = Followed(lab.start(*lab.job("reclaimed", **LONG)))
    until(lambda: launch.has_reached(1), 2 * STEP_S)
    lab.sky("api", "stop")
    lab.sky("api", "start")
    until(lambda: launch.has_reached(15))
    lab.lab("preempt")
    code = launch.wait(3 * STEP_S)
    return {"code": code, "out": launch.out, "err": launch.err, "run": lab.run_of("reclaimed")}


def test_a_reclaimed_run_ends_well_and_its_launch_says_so(reclaimed: dict[str, Any]) -> None:
    assert reclaimed["code"] == 0, "".join(reclaimed["err"])


def test_the_log_tells_of_the_reclaim_in_one_calm_line(reclaimed: dict[str, Any]) -> None:
    lines = [line for line in reclaimed["out"] if "node reclaimed" in line]
    assert len(lines) == 1, lines
    match = re.search(r"node reclaimed at step (\d+); resuming from (\d+)", lines[0])
    assert match is not None, lines
    assert 0 < int(match[2]) <= int(match[1])
    assert "Traceback" not in "".join(reclaimed["err"])


def test_no_line_of_the_log_is_lost_or_told_twice(lab: Lab, reclaimed: dict[str, Any]) -> None:
    there = (lab.store / reclaimed["run"] / "log.txt").read_text()
    assert "".join(reclaimed["out"]) == there
    assert (lab.runs / reclaimed["run"] / "log.txt").read_text() == there
    for name in ("events.jsonl", "metrics.jsonl"):
        assert (lab.runs / reclaimed["run"] / name).read_bytes() == (lab.store / reclaimed["run"] / name).read_bytes()


def test_status_counts_the_recovery_and_prices_both_nodes(lab: Lab, reclaimed: dict[str, Any]) -> None:
    status = lab.status(reclaimed["run"])
    assert (status["state"], status["recoveries"], status["attempts"]) == ("succeeded", 1, 2)
    attempts = status["node_attempts"]
    assert len(attempts) == 2
    assert all(attempt["price_usd_per_hour"] == pytest.approx(7.6) for attempt in attempts)
    paid_s = sum(attempt["ended_at"] - attempt["started_at"] for attempt in attempts)
    assert status["price_usd_so_far"] == pytest.approx(paid_s / 3600 * 7.6)


def test_the_seconds_from_a_node_to_its_first_step_are_shown_phase_by_phase(reclaimed: dict[str, Any]) -> None:
    lines = [line for line in reclaimed["out"] if " s from the node to step " in line]
    assert len(lines) == 2
    assert all(
        phase in lines[1] for phase in ("environment", "starting ranks", "loading model", "restoring checkpoint")
    )


def test_the_model_that_comes_home_is_the_one_that_never_lost_a_node(
    lab: Lab, reclaimed: dict[str, Any], tmp_path: Path
) -> None:
    model = Path(lab.run("fetch", reclaimed["run"], str(tmp_path / "model")).stdout.strip())
    assert digest(model) == lab.local_digest(LONG, tmp_path)


def test_a_bad_dataset_is_not_tried_again_and_launch_says_why(lab: Lab, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(json.dumps({"nothing": n}) for n in range(20)) + "\n")
    done = lab.run(*lab.job("baddata", **{"data.sources.0.path": str(bad)}), expect=1)
    run = lab.run_of("baddata")
    status = lab.status(run)
    assert (status["state"], status["exit_code"], status["recoveries"]) == ("bad input", 64, 0)
    assert status["detail"]
    assert status["detail"] in done.stderr
    assert len((lab.store / run / "nodes.jsonl").read_text().splitlines()) == 1


def test_down_in_mid_run_leaves_nothing_and_twice_is_fine(lab: Lab) -> None:
    lab.run(*lab.job("godown", **{**STEPS, "train.max_steps": "4000"}), "-d")
    run = lab.run_of("godown")
    until(lambda: (lab.status(run)["step"] or 0) >= 3, 2 * STEP_S)
    said = lab.run("down", run).stderr
    assert "cancelled, its progress saved first" in said
    assert "saved at step" in said
    assert re.search(r"\$\d+\.\d\d in all", said)
    assert lab.slurm_jobs() == []
    assert "No existing clusters" in lab.sky("status")
    assert (lab.store / run / "checkpoints").is_dir()
    assert lab.status(run)["state"] == "cancelled"
    assert "nothing of it was running" in lab.run("down", run).stderr


POINTS = {
    "in the ledger": lambda folder: (folder / "record.json").exists(),
    "packed": lambda folder: (folder / "ship" / "relay.py").exists(),
    "asked": lambda folder: (folder / "sky-request").exists(),
    "recorded": lambda folder: '"handle": {' in (folder / "record.json").read_text(),
    "followed": lambda folder: '"submitted_at": 1' in (folder / "record.json").read_text(),
}


def jobs_of(lab: Lab, name: str) -> list[str]:
    """SkyPilot's lines about jobs of this name, those of earlier days included."""
    return [line for line in lab.sky("jobs", "queue", "--all-users").splitlines() if name in line]


@pytest.mark.parametrize("point", POINTS)
def test_a_launch_killed_at_any_point_leaves_no_lost_and_no_doubled_job(lab: Lab, point: str) -> None:
    name = f"killed-{point.replace(' ', '-')}"
    before = jobs_of(lab, name)
    process = lab.start(*lab.job(name, **STEPS))

    def is_there() -> bool:
        assert process.poll() is None, process.communicate()
        return any(POINTS[point](folder) for folder in lab.runs.glob(f"{name}-*") if (folder / "record.json").exists())

    until(is_there)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = lab.run_of(name)
    status = lab.status(run)
    is_active = status["state"] in ("created", "queued", "provisioning", "running")
    assert is_active or "never started" in status["detail"], status
    if is_active:
        again = lab.run(*lab.job(name, **STEPS), expect=None)  # the person tries again
        assert again.returncode == 2
        assert f"dolphin logs {run}" in again.stderr
    lab.run("down", run)
    jobs = jobs_of(lab, name)
    assert len(jobs) <= len(before) + 1
    assert not [line for line in jobs if re.search(r"PENDING|STARTING|RUNNING|RECOVERING", line)]
    assert lab.slurm_jobs() == []


def test_a_second_launch_on_a_warm_cluster_waits_for_no_node(lab: Lab) -> None:
    short = {**STEPS, "train.max_steps": "4", "resources.spot": "never"}
    lab.run(*lab.job("warm", **short), "--cluster", "mine")
    [node] = lab.slurm_jobs()
    lab.run(*lab.job("warm-again", **short), "--cluster", "mine")
    assert lab.slurm_jobs() == [node], "the second launch took a node of its own"
    assert lab.status(lab.run_of("warm-again"))["state"] == "succeeded"
    said = lab.run("down", lab.run_of("warm-again")).stderr
    assert "cluster mine is down" in said
    assert lab.slurm_jobs() == []
    assert "No existing clusters" in lab.sky("status")
    assert lab.status(lab.run_of("warm-again"))["state"] == "succeeded"


def test_the_unit_tests_that_need_skypilot_pass_with_it(lab: Lab) -> None:
    files = [str(path) for path in sorted((ROOT / "tests/unit").glob("test_sky_*.py"))]
    done = subprocess.run(
        lab.command("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *files),
        env=lab.environment, cwd=ROOT, capture_output=True, text=True, timeout=STEP_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-1000:]
