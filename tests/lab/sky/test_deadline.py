"""A run with a deadline on a cluster that takes nodes away: a real SkyPilot with dolphin's strategy in its jobs controller.

Slurm sells no spot: the one cluster has two names here, with a price each, and the job says of the cheap one that its nodes may be
taken (`DOLPHIN_PREEMPTIBLE`). Hours are minutes, by the job's `env`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.require import is_asked_for
from tests.support.sky_lab import STEP_S, Followed, Lab, digest, until

SPOT, STEADY = "slurm/dolphin", "slurm/steady"
LENGTH = ("train.max_steps", "checkpoint.every.epochs", "checkpoint.every.steps")
MINUTES = int(os.environ.get("DOLPHIN_LAB_MINUTES", "6"))
"""Of the deadline: on an idle machine a new node makes its first step after a minute and a half. More for a busy one."""
SCALED = {
    "resources.infra": f"[{SPOT}, {STEADY}]", "env.DOLPHIN_PREEMPTIBLE": SPOT, "env.DOLPHIN_TICK_S": "'10'",
    "env.DOLPHIN_RESTART_S": "'30'", "env.DOLPHIN_EXPORT_S": "'5'",
    "train.max_steps": "120", "checkpoint.every.epochs": "null", "checkpoint.every.steps": "10",
}  # fmt: skip


takes_minutes = pytest.mark.skipif(
    not is_asked_for("long"),
    reason="five minutes each beside the other tests of the lab: DOLPHIN_REQUIRE=lab,long runs it",
)


def test_doctor_says_that_deadlines_are_kept_here(lab: Lab) -> None:
    """`up` set the plugin up as a person does: `dolphin doctor --fix`, then SkyPilot's API server."""
    found = json.loads(lab.run("doctor", "--json", expect=None).stdout)["findings"]
    assert [(one["health"], one["advice"]) for one in found if one["subject"] == "deadlines"] == [("ok", "")]


def nodes_of(lab: Lab, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (lab.store / run / "nodes.jsonl").read_text().splitlines()]


def where(lab: Lab, run: str) -> list[str]:
    """The name of the cluster that gave each node, in order."""
    return [str(node["infra"]).split("/")[1] for node in nodes_of(lab, run)]


def take_away(lab: Lab, launch: Followed, run: str) -> None:
    """The newest node, as soon as it made some steps, and wait for the next; one that gives the run back by itself is left alone."""
    num, reached = len(nodes_of(lab, run)), launch.last_step()

    def is_next_there() -> bool:
        return len(nodes_of(lab, run)) > num

    until(lambda: launch.has_reached(reached + 5) or is_next_there(), 2 * STEP_S)
    if not is_next_there():
        lab.lab("preempt")
    until(lambda: is_next_there() or launch.process.poll() is not None)


@takes_minutes
def test_a_run_whose_node_is_taken_again_and_again_ends_on_demand_in_time(lab: Lab, tmp_path: Path) -> None:
    began = time.time()
    launch = Followed(lab.start(*lab.job("in-time", **SCALED, deadline=f"{MINUTES}m")))
    until(lambda: launch.has_reached(1), 2 * STEP_S)
    run = lab.run_of("in-time")
    while where(lab, run)[-1] == "dolphin":
        take_away(lab, launch, run)
    assert launch.wait(3 * STEP_S) == 0, "".join(launch.err)
    assert time.time() - began < 60 * MINUTES
    assert where(lab, run)[0] == "dolphin"
    assert where(lab, run)[-1] == "steady"
    assert [node["price_usd_per_hour"] for node in nodes_of(lab, run)] == pytest.approx(
        [7.6 if name == "dolphin" else 30.4 for name in where(lab, run)]
    )
    model = Path(lab.run("fetch", run, str(tmp_path / "model")).stdout.strip())
    assert digest(model) == lab.local_digest({key: SCALED[key] for key in LENGTH}, tmp_path)


@takes_minutes
def test_a_run_with_slack_stays_on_spot_though_its_node_is_taken(lab: Lab, tmp_path: Path) -> None:
    launch = Followed(lab.start(*lab.job("with-slack", **SCALED, deadline="5h")))
    until(lambda: launch.has_reached(1), 2 * STEP_S)
    run = lab.run_of("with-slack")
    take_away(lab, launch, run)
    assert launch.wait(3 * STEP_S) == 0, "".join(launch.err)
    assert where(lab, run) == ["dolphin", "dolphin"]
    model = Path(lab.run("fetch", run, str(tmp_path / "model")).stdout.strip())
    assert digest(model) == lab.local_digest({key: SCALED[key] for key in LENGTH}, tmp_path)


@takes_minutes
def test_a_budget_ends_a_run_that_a_larger_one_takes_to_its_end(lab: Lab, tmp_path: Path) -> None:
    """40 cents are three minutes at $7.60 an hour, node and setup included; the run would take longer, which its plan knows."""
    long = {**SCALED, "train.max_steps": "1500"}
    launch = Followed(lab.start(*lab.job("out-of-money", **long, deadline="5h", budget="0.4"), "--force"))
    until(lambda: launch.has_reached(1), 2 * STEP_S)
    run = lab.run_of("out-of-money")
    assert launch.wait(3 * STEP_S) == 5, "".join(launch.err)
    status = lab.status(run)
    assert (status["state"], status["recoveries"]) == ("budget reached", 0)
    assert status["price_usd_so_far"] <= 0.42
    assert lab.slurm_jobs() == []
    lab.run("resume", run, "--set", "budget=9")
    assert lab.status(run)["state"] == "succeeded"
    model = Path(lab.run("fetch", run, str(tmp_path / "model")).stdout.strip())
    assert digest(model) == lab.local_digest({key: long[key] for key in LENGTH}, tmp_path)
