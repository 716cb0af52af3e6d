"""bench/spot.py. The disasters: an optimum that is none, so that a policy looks better than it is; a late run that is scored."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from bench import spot, spot_fit, spot_traces
from bench.spot_rivals import greedy, optimum_usd, uniform_progress
from launcher.runs.policy.sightings import HOUR, Shape
from launcher.runs.policy.simulate import Job, simulate


def job(restart_s: float, work_h: float = 4.0, deadline_h: float = 6.0) -> Job:
    return Job(work_h * HOUR, deadline_h * HOUR, restart_s, on_demand_usd_per_hour=3.0, spot_usd_per_hour=1.0)


def test_the_optimum_by_hand() -> None:
    """Four hours; spot for the first, gone for the second, there again: to wait costs a second start on spot, and no more;
    without the time to wait, the second hour is done on demand."""
    zones = {"a": [True] * 6 + [False] * 6 + [True] * 30}
    assert optimum_usd(job(180.0), zones, 600.0) == pytest.approx(4.0 + 2 * 180 / HOUR)
    in_a_hurry = job(180.0, deadline_h=4 + 10 / 60)
    assert optimum_usd(in_a_hurry, zones, 600.0) == pytest.approx(1.0 + 3.0 + (4 - 2 * 57 / 60) + 180 / HOUR)
    assert optimum_usd(job(180.0), {"a": [False]}, 600.0) == pytest.approx(3.0 * 4.05)


@pytest.mark.parametrize("restart_s", [180.0, 720.0])
def test_no_policy_beats_the_optimum(restart_s: float) -> None:
    generator = random.Random(7)
    for _ in range(20):
        zones = {name: [generator.random() < 0.6 for _ in range(40)] for name in "ab"}
        least = optimum_usd(job(restart_s), zones, 600.0)
        for policy in (greedy, uniform_progress(job(restart_s))):
            ended = simulate(job(restart_s), zones, 600.0, policy)
            assert ended.finished_s <= 6 * HOUR
            assert ended.usd >= least - 1e-6


def test_a_policy_that_is_late_once_has_no_score() -> None:
    cell = (52, 3, "often")
    told = spot.report([(cell, {"hasty": 20.0, "lazy": 50.0}), (cell, {"hasty": 30.0, "lazy": None})])
    same = {"deadline_h": 52, "restart_min": 3, "group": "often", "traces": 2}
    assert told == {
        "cells": [
            {**same, "policy": "hasty", "score": 25.0, "missed": 0},
            {**same, "policy": "lazy", "score": None, "missed": 1},
        ],
        "mean": {"hasty": 25.0, "lazy": None},
    }


def test_recorded_traces_are_read_each_alone_and_those_of_one_moment_together(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl.gz"
    lines = [
        {"zone": "east", "trace": "1", "gap_seconds": 600, "start_time": "t", "unavailable": "0001"},
        {"zone": "west", "trace": "1", "gap_seconds": 600, "start_time": "t", "unavailable": "1110"},
        {"zone": "north", "trace": "1", "gap_seconds": 600, "unavailable": "1100"},
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    east, west = (True, True, True, False), (False, False, False, True)
    traces = spot_traces.recorded(path)
    assert spot_traces.scenes(traces, spot_traces.groups_of(traces)) == [
        spot_traces.Scene("often", 600.0, {"east": east}),
        spot_traces.Scene("rarely", 600.0, {"west": west}),
        spot_traces.Scene("often", 600.0, {"north": (False, False, True, True)}),
        spot_traces.Scene("together", 600.0, {"east": east, "west": west}),
    ]


def test_a_file_that_holds_no_traces_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"zone": "east"}\n')
    with pytest.raises(ValueError, match=r"other\.jsonl\.gz:1: 'unavailable'"):
        spot_traces.recorded(path)


def test_made_traces_are_the_same_every_time_and_of_both_kinds() -> None:
    first = spot_traces.made(4)
    assert first == spot_traces.made(4)
    assert {scene.group for scene in spot_traces.scenes(first, spot_traces.groups_of(first))} == {
        "often",
        "rarely",
        "together",
    }


def trace_of(zone: str, number: int, ticks: str) -> spot_traces.Trace:
    return spot_traces.Trace(zone, str(number), HOUR / 2, tuple(tick == "0" for tick in ticks), False)


def test_a_held_out_split_holds_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Shapes come from the named zones alone, and none of their traces is played."""
    traces = [trace_of(zone, number, "0011") for zone in ("east", "west") for number in range(4)]
    played: dict[str, list[str]] = {}

    def play(scenes: list[spot_traces.Scene], processes: int, fit_on: list[spot_traces.Trace]) -> list[object]:
        played.update(zones=[zone for scene in scenes for zone in scene.zones], fit_on=[trace.zone for trace in fit_on])
        return []

    monkeypatch.setattr(spot, "made", lambda _: traces)
    monkeypatch.setattr(spot, "played", play)
    monkeypatch.setattr("sys.argv", ["spot.py", "--fit-on", "east", "--skip", "1", "--first", "2", "--json"])
    spot.main()
    assert played == {"zones": ["west"] * 2, "fit_on": ["east"] * 4}
    monkeypatch.setattr("sys.argv", ["spot.py", "--fit-on", "north"])
    with pytest.raises(SystemExit):
        spot.main()
    assert "no trace of it; there are east, west" in capsys.readouterr().err


def test_shapes_are_ends_of_spells_by_the_hours_lived_in_each_phase() -> None:
    """Up: half an hour, two hours, half an hour. Down: half an hour three times, twice cut off by the trace's end."""
    traces = [trace_of("east", 1, "0100001"), trace_of("east", 2, "01")]
    shape = Shape((0.0, 1.0), (9.0, 9.0), 4.0)
    assert spot_fit.fitted(traces, True, shape) == Shape((0.0, 1.0), (2 / 2.0, 1 / 1.0), 4.0)
    assert spot_fit.fitted(traces[:1], False, Shape((0.0,), (9.0,), 4.0)) == Shape((0.0,), (1 / 1.0,), 4.0)
