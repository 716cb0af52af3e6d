"""`dolphin launch` on spot instances with a bucket, a jobs controller of its own: over a reclaim with notice, to the model at home."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.cloud.configuration import GPU_PRICES, GPU_TYPE
from tests.support.cloud_lab import GONE, CloudLab
from tests.support.sky_lab import STEP_S, Followed, digest, until

NOTICE_S = 20
EVERY = 150
LONG = {"train.max_steps": "400", "checkpoint.every.epochs": "null", "checkpoint.every.steps": str(EVERY)}
"""Still training when a server that was stopped is back, and saves are far apart: what survives a reclaim between them
survives by its notice."""


@dataclass(frozen=True)
class Story:
    """A run as its one launch command told it, and what the cloud saw of it."""

    code: int
    out: list[str]
    err: list[str]
    run: str
    lost_at: int
    """Step that the log had told of when the notice came."""


@pytest.fixture(scope="module")
def story(cloud_lab: CloudLab) -> Story:
    """Its API server goes away for a moment in mid-training; after the first save the cloud takes the node, with notice."""
    launch = Followed(cloud_lab.start(*cloud_lab.job("story", **LONG)))
    until(lambda: launch.has_reached(1), 3 * STEP_S)
    cloud_lab.sky("api", "stop")
    cloud_lab.sky("api", "start")
    run = cloud_lab.run_of("story")
    until(lambda: cloud_lab.has_saved(run, EVERY))
    node = cloud_lab.node(run)
    assert node is not None
    cloud_lab.lab("reclaim", node["id"], str(NOTICE_S))
    lost_at = launch.last_step()
    code = launch.wait(4 * STEP_S)
    return Story(code, launch.out, launch.err, run, lost_at)


def test_a_run_ends_well_over_a_restarted_server_and_a_reclaimed_node(story: Story) -> None:
    assert story.code == 0, "".join(story.err)
    assert "Traceback" not in "".join(story.err)


def test_what_the_plan_says_is_spot_is_not_bought_on_demand(cloud_lab: CloudLab, story: Story) -> None:
    bought = [(one["type"], one["kind"]) for one in cloud_lab.instances(story.run)]
    assert len(bought) >= 2
    assert set(bought) == {(GPU_TYPE, "spot")}


def test_a_notice_is_heard_and_no_step_is_trained_twice(story: Story) -> None:
    resumed = [int(match[1]) for line in story.out if (match := re.search(r"resuming from (\d+)", line))]
    assert len(resumed) == 1
    assert resumed[0] >= story.lost_at
    steps = [int(match[1]) for line in story.out if (match := re.match(r"step (\d+)/\d+ · loss", line))]
    assert len(steps) == len(set(steps)), "steps are told of twice"


def test_what_is_paid_is_the_price_of_what_was_bought(cloud_lab: CloudLab, story: Story) -> None:
    status = cloud_lab.status(story.run)
    assert (status["state"], status["recoveries"]) == ("succeeded", 1)
    prices = [attempt["price_usd_per_hour"] for attempt in status["node_attempts"]]
    assert prices == [spot_price(one["zone"]) for one in cloud_lab.instances(story.run)]
    paid = sum((a["ended_at"] - a["started_at"]) / 3600 * a["price_usd_per_hour"] for a in status["node_attempts"])
    assert status["price_usd_so_far"] == pytest.approx(paid)


def spot_price(zone: str) -> float:
    return GPU_PRICES[zone[:-1]][1]


def test_a_run_that_is_over_leaves_no_instance_but_the_controller(cloud_lab: CloudLab, story: Story) -> None:
    assert all(one["state"] in GONE for one in cloud_lab.instances(story.run))
    assert cloud_lab.controller()["state"] == "running"


def test_no_line_that_the_bucket_has_is_missing_at_home_or_told_twice(cloud_lab: CloudLab, story: Story) -> None:
    """The lines of a node's last seconds come home and not into the bucket: the next node's must not be taken for them."""
    at_home = cloud_lab.runs / story.run
    assert "".join(story.out) == (at_home / "log.txt").read_text()
    for name in ("log.txt", "events.jsonl", "metrics.jsonl"):
        here, there = ((at_home / name).read_text(), cloud_lab.in_bucket(f"{story.run}/run/{name}").decode())
        missing = Counter(there.splitlines()) - Counter(here.splitlines())
        assert not missing, f"{name}: {list(missing)[:3]}"
    events = [json.loads(line) for line in (at_home / "events.jsonl").read_text().splitlines()]
    assert [event["attempt"] for event in events if event["event"] == "attempt_started"] == [1, 2]


def test_the_model_comes_home_with_the_keys_that_skypilot_uses(
    cloud_lab: CloudLab, story: Story, tmp_path: Path
) -> None:
    model = Path(cloud_lab.run("fetch", story.run, str(tmp_path / "model")).stdout.strip())
    assert digest(model) == cloud_lab.local_digest(LONG, tmp_path)


def test_the_last_words_name_a_model_that_still_exists(story: Story) -> None:
    [line] = [line for line in story.err if line.startswith("model: ")]
    assert line.split()[1].startswith("s3://"), "the node that it lay on is gone"


def test_a_finished_run_is_known_when_the_controller_has_stopped_itself(
    cloud_lab: CloudLab, story: Story, tmp_path: Path
) -> None:
    """The normal case of the next morning."""
    cloud_lab.lab("stop-controller")
    status = cloud_lab.status(story.run)
    assert (status["state"], status["exit_code"]) == ("succeeded", 0)
    model = Path(cloud_lab.run("fetch", story.run, str(tmp_path / "model")).stdout.strip())
    assert digest(model)
    assert "nothing of it was running" in cloud_lab.run("down", story.run).stderr
    assert cloud_lab.controller()["state"] == "stopped", "nobody asked for it to be paid for again"
