"""A bill that is nine times what the plan had said, or a finished run priced as what it was not: each node says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.backends.sky.answers import is_spot
from launcher.backends.sky.backend import SkyRuns
from launcher.backends.sky.node import instance
from launcher.backends.sky.records import hourly_price, keep_price, node_attempts
from launcher.backends.sky.ship import pack
from launcher.backends.sky.task import PRICES_FILE, ship
from launcher.runs import ledger
from launcher.runs.states import RunState
from tests.unit.test_sky_task import job_of, train_of
from trainer.run import run_folder

OFFERS = [
    ["aws/eu-south-2/eus2-az2", True, 3.41],
    ["aws/us-east-1/use1-az1", True, 8.02],
    ["aws/us-east-1", False, 30.13],
]
SPOT_NODE = {"life": "spot", "placement/availability-zone": "eu-south-2b", "placement/availability-zone-id": "eus2-az2"}
ON_DEMAND = {
    "life": "on-demand",
    "placement/availability-zone": "us-east-1d",
    "placement/availability-zone-id": "use1-az6",
}


def aws(facts: dict[str, str]) -> instance.Ask:
    """A metadata service of AWS with these answers; it wants its token."""

    def ask(url: str, headers: dict[str, str], method: str) -> str | None:
        if method == "PUT":
            return "token"
        assert headers == {"X-aws-ec2-metadata-token": "token"}
        name = url.partition("/latest/meta-data/")[2]
        return {**facts, "instance-life-cycle": facts["life"], "instance-type": "g6e.48xlarge"}.get(name)

    return ask


def begin(
    folder: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, str], region: str, **config: Any
) -> tuple[dict[str, Any], list[str], bool]:
    monkeypatch.setenv(
        "SKYPILOT_CLUSTER_INFO",
        json.dumps({"cloud": "AWS", "region": region, "zone": facts["placement/availability-zone"]}),
    )
    settings = {"run_dir": str(folder), "offers": OFFERS, "max_hourly_cost": None, "num_nodes": 1, **config}
    return instance.begin(settings, 1.0, aws(facts))


def test_a_node_writes_down_its_kind_its_zone_and_its_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node, said, is_refused = begin(tmp_path, monkeypatch, SPOT_NODE, "eu-south-2")
    assert (node["spot"], node["zone_id"], node["instance_type"]) == (True, "eus2-az2", "g6e.48xlarge")
    assert (node["price_usd_per_hour"], node["is_exact_price"]) == (3.41, True)
    assert (said, is_refused) == ([], False), "what was planned is no news"
    assert set(node) == {*run_folder.NODE_FIELDS, *run_folder.NODE_PRICE_FIELDS}


def test_a_node_of_another_kind_or_price_than_the_plans_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, (line,), is_refused = begin(tmp_path, monkeypatch, ON_DEMAND, "us-east-1")
    assert node["price_usd_per_hour"] == 30.13
    assert "on demand, $30.13/h; the plan's cheapest was aws/eu-south-2/eus2-az2, spot, $3.41/h" in line
    assert not is_refused


def test_a_node_above_the_cap_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outcome.json").write_text('{"state": "preempted", "exit_code": 75}')
    _, (line,), is_refused = begin(tmp_path, monkeypatch, ON_DEMAND, "us-east-1", max_hourly_cost=15)
    assert is_refused
    assert "above resources.max_hourly_cost $15.00" in line
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["exit_code"], outcome["reason"]) == (1, line)
    _, _, is_refused = begin(tmp_path, monkeypatch, ON_DEMAND, "us-east-1", max_hourly_cost=15, num_nodes=3)
    assert not is_refused, "prices are of all nodes, the cap is of one"
    elsewhere = {**SPOT_NODE, "placement/availability-zone-id": "eus2-az9"}
    _, _, is_refused = begin(tmp_path, monkeypatch, elsewhere, "eu-south-2", max_hourly_cost=3)
    assert not is_refused, "the price of another zone is a guess, and no reason to stop"


def test_a_cloud_that_tells_nothing_is_believed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYPILOT_CLUSTER_INFO", json.dumps({"cloud": "GCP", "region": "us-central1"}))
    node, said, _ = instance.begin({"run_dir": str(tmp_path), "offers": OFFERS}, 1.0, lambda *_: None)
    assert ("spot" in node, said) == (False, [])
    answers = {
        "scheduling/preemptible": "TRUE",
        "zone": "projects/1/zones/us-central1-a",
        "machine-type": "projects/1/machineTypes/g2",
    }
    found = instance.look({"cloud": "GCP"}, {}, lambda url, *_: answers.get(url.partition("/instance/")[2]))
    assert found == {"spot": True, "zone": "us-central1-a", "instance_type": "g2"}
    found = instance.look({"cloud": "Azure"}, {}, lambda url, *_: "Spot" if "priority" in url else "Standard_ND96")
    assert found == {"spot": True, "instance_type": "Standard_ND96"}
    assert instance.look({"cloud": "Slurm"}, {}, lambda *_: pytest.fail("nobody to ask")) == {}


@pytest.mark.parametrize(
    ("infra", "spot", "found"),
    [
        ("AWS/us-east-1/use1-az1", True, (8.02, True)),
        ("AWS/us-east-1/us-east-1a", True, (8.02, False)),
        ("AWS/us-east-1/us-east-1a", False, (30.13, True)),
        ("AWS/us-east-1", False, (30.13, True)),
        ("AWS/eu-south-2", False, (None, False)),
        ("GCP/us-east-1", True, (None, False)),
        ("", True, (None, False)),
    ],
)
def test_the_price_of_a_place_is_its_own_and_never_another_regions(
    infra: str, spot: bool, found: tuple[float | None, bool]
) -> None:
    assert instance.price_at(OFFERS, infra, spot) == found


def test_the_offers_travel_to_the_node(tmp_path: Path) -> None:
    job = job_of(max_hourly_cost=15)
    (tmp_path / PRICES_FILE).write_text(json.dumps(OFFERS))
    folder = pack(tmp_path, job, train_of(job), ship(train_of(job)), [])
    config = json.loads((folder / "relay.json").read_text())
    assert (config["offers"], config["max_hourly_cost"], config["num_nodes"]) == (OFFERS, 15, 1)
    assert (folder / "instance.py").exists()


def test_what_skypilot_says_of_a_job_that_is_over_is_what_was_asked_for() -> None:
    assert is_spot("1x[spot](gpus=L40S:8, ...)") is True
    assert is_spot("1x(gpus=L40S:8, ...)") is False
    assert is_spot("1x[L40S:8][On-demand|Spot]") is None
    assert is_spot("1x[L40S:8][Spot]") is True
    assert is_spot("-") is None


def test_a_finished_run_is_priced_by_what_each_of_its_nodes_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SkyPilot then says `[On-demand|Spot]`: every hour was priced as on demand, nine times too high."""
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    record = ledger.update(
        ledger.create("demo-1", "demo", "sky"), handle={"kind": "managed", "job_id": 1}, submissions=1
    )
    (record.folder / PRICES_FILE).write_text(json.dumps(OFFERS))
    record.files.outcome.write_text('{"state": "done", "exit_code": 0}')
    nodes = [
        {"time": 0.0, "infra": "AWS/eu-south-2/eu-south-2b", "spot": True, "price_usd_per_hour": 3.41},
        {"time": 3600.0, "infra": "AWS/us-east-1/us-east-1d", "spot": False, "price_usd_per_hour": 30.13},
    ]
    record.files.nodes.write_text("".join(json.dumps(node) + "\n" for node in nodes))
    record.files.events.write_text(
        '{"event": "checkpoint_saved", "time": 3600.0}\n{"event": "finished", "time": 3599.0}\n'
    )

    class Sky:
        def jobs(self, part: str, *, active_only: bool) -> list[SimpleNamespace]:
            return [
                SimpleNamespace(name="demo-1", status="SUCCEEDED", job_id=1, infra="aws", cluster=None, recoveries=1, submitted_at=0.0,
                                ended_at=7200.0, reason=None, spot=None, is_cleaned_up=True)
            ]  # fmt: skip

        def tail_managed(self, job_id: int, follow: bool, stream: object) -> None:
            return

    status = SkyRuns(Sky()).status(record)
    assert [attempt.price_usd_per_hour for attempt in status.attempts] == [3.41, 30.13]
    assert status.price_usd_so_far == pytest.approx(3.41 * 3599 / 3600 + 30.13)


def test_what_a_node_cost_is_kept_while_skypilot_still_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of clouds without a metadata service that tells: seen once, it stays, whatever the next node is and the end says."""
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    record = ledger.update(
        ledger.create("demo-1", "demo", "sky"), handle={"kind": "managed", "job_id": 1}, submissions=1
    )
    (record.folder / PRICES_FILE).write_text(json.dumps([["runpod/ca", True, 4.0], ["runpod/ca", False, 12.0]]))
    job = SimpleNamespace(spot=True, ended_at=None)
    record.files.nodes.write_text('{"time": 0.0, "infra": "RunPod/CA"}\n')
    keep_price(record, hourly_price(record, job))
    with open(record.files.nodes, "a") as nodes:
        nodes.write('{"time": 3600.0, "infra": "RunPod/CA"}\n')
    job.spot = False
    keep_price(record, hourly_price(record, job))
    over = SimpleNamespace(spot=None, ended_at=7200.0)
    record.files.events.write_text('{"event": "x", "time": 3599.0}\n')
    attempts = node_attempts(record, over, RunState.SUCCEEDED, 9999.0, hourly_price(record, over))
    assert [attempt.price_usd_per_hour for attempt in attempts] == [4.0, 12.0]


def test_where_one_kind_alone_was_asked_for_a_node_is_of_that_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYPILOT_CLUSTER_INFO", json.dumps({"cloud": "Lambda", "region": "us-east-1"}))
    offers = [["aws/us-east-1/use1-az1", True, 8.02], ["lambda/us-east-1", False, 9.0]]
    node, (line,), _ = instance.begin({"run_dir": str(tmp_path), "offers": offers}, 1.0, lambda *_: None)
    assert (node["spot"], node["price_usd_per_hour"]) == (False, 9.0)
    assert "lambda/us-east-1, on demand, $9.00/h; the plan's cheapest was aws" in line.lower()
