"""What runs saw of a zone is used by the next one: a guess where three reclaims were written down is a bill."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import Offer
from launcher.commands.offers import OffersOptions, offers_command
from launcher.plan.seen import place_of, places, weather_of
from launcher.runs import ledger
from launcher.runs.errors import BadUsage
from trainer.run.run_folder import append_line

T0, HOUR = 1_790_000_000.0, 3600.0
SPOT = Offer("sky", "aws/us-east-1/use1-az4", "L40S", 8, True, 12.0)
ELSEWHERE = Offer("sky", "aws/eu-south-2/eus2-az1", "L40S", 8, True, 13.0)
DEMAND = Offer("sky", "aws/us-east-1", "L40S", 8, False, 30.0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ledger.RunRecord:
    """Three hours on a spot node, taken away; eight minutes later the next one steps; an hour on it; then a person's resume."""
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    record = ledger.create("demo-260101-000000-abcd", "demo", "sky")

    def node(at: float, submission: int, **fields: Any) -> None:
        place = {"infra": "AWS/us-east-1/us-east-1a", "zone": "us-east-1a", "zone_id": "use1-az4", "spot": True}
        append_line(record.files.nodes, {"time": at + 60, "setup_at": at, "submission": submission, **place, **fields})

    def step(at: float) -> None:
        append_line(record.files.metrics, {"step": 1, "loss": 1.0, "time": at})

    node(T0, 1)
    step(T0 + 300)
    step(T0 + 3 * HOUR)
    node(T0 + 3 * HOUR + 200, 1)
    step(T0 + 3 * HOUR + 480)
    step(T0 + 4 * HOUR + 200)
    node(T0 + 9 * HOUR, 2, spot=False, infra="AWS/eu-south-2/eu-south-2a", zone="eu-south-2a", zone_id="eus2-az1")
    step(T0 + 9 * HOUR + 100)
    return record


def test_hours_reclaims_and_starts_are_learnt_by_zone(run: ledger.RunRecord) -> None:
    place = place_of(SPOT, places())
    assert place is not None
    assert place.spot_hours == pytest.approx(4.0)
    assert place.reclaims == 1, "what a person started again was not taken away"
    assert sorted(place.restarts_s) == [300.0, 480.0]
    assert place.last_seen_at == T0 + 4 * HOUR + 200
    other = place_of(ELSEWHERE, places())
    assert other is not None
    assert (other.spot_hours, other.reclaims, other.restarts_s) == (0.0, 0, [100.0])


def test_the_next_plan_is_told(run: ledger.RunRecord) -> None:
    weather = weather_of([SPOT, ELSEWHERE, DEMAND], 4.0, places())
    assert set(weather) == {SPOT.infra}, "nothing was seen of spot machines elsewhere"
    assert weather[SPOT.infra].reclaims_per_hour == pytest.approx(2 / (6 + 4))
    assert weather[SPOT.infra].restart_s == 390.0


def test_offers_show_prices_beside_what_was_seen(run: ledger.RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.commands.offers.offers_for", lambda *_, **__: ([SPOT, ELSEWHERE, DEMAND], []))
    shown = io.StringIO()
    with redirect_stdout(shown):
        assert offers_command(None, OffersOptions(accelerators="L40S:8")) == 0
    head, first, *_ = shown.getvalue().splitlines()
    assert head.split() == ["where", "machine", "kind", "$/h", "seen", "reclaims/h", "restart", "last", "seen"]
    assert first.split()[:11] == [SPOT.infra, "8", "x", "L40S", "spot", "12.00", "4.0", "h", "0.20", "6", "min"]
    told = io.StringIO()
    with redirect_stdout(told):
        offers_command(None, OffersOptions(accelerators="L40S:8", as_json=True))
    rows = json.loads(told.getvalue())
    assert [row["price_usd_per_hour"] for row in rows] == [12.0, 13.0, 30.0]
    assert rows[0]["seen"]["reclaims"] == 1
    assert rows[2]["seen"] is None


def test_offers_of_nothing_are_a_mistake() -> None:
    with pytest.raises(BadUsage, match="--accelerators L40S:8"):
        offers_command(None, OffersOptions())
