"""Sweeps: the grid, who is stopped, what each run may cost, the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.runs.errors import BadUsage, LauncherError
from launcher.runs.sweep import Cell, Sweep, grant, grid, losers, split_values


def test_values_part_at_commas_outside_brackets_and_quotes() -> None:
    assert split_values("1e-5,2e-5") == ["1e-5", "2e-5"]
    assert split_values("[mlp, norm],[norm]") == ["[mlp, norm]", "[norm]"]
    assert split_values("'a,b',c") == ["'a,b'", "c"]


def test_grid_has_every_combination_once() -> None:
    assert grid(["a=1,2,1", "b.c=x,y"]) == [["a=1", "b.c=x"], ["a=1", "b.c=y"], ["a=2", "b.c=x"], ["a=2", "b.c=y"]]
    assert grid([]) == [[]]


@pytest.mark.parametrize("setting", ["a", "a=", "a=1,,2", "=1", "name=x", "budget=3"])
def test_grid_refuses_what_gives_no_cells(setting: str) -> None:
    with pytest.raises(BadUsage):
        grid([setting])


@pytest.mark.parametrize(
    "losses, stopped",
    [
        ({"a": [2.0]}, set()),
        ({"a": [2.0], "b": [1.0]}, {"a"}),
        ({"a": [2.0], "b": [1.0], "c": [3.0]}, {"c"}),
        ({"a": [2.0], "b": [2.0]}, {"b"}),
        ({"a": [float("nan")], "b": [9.0]}, {"a"}),
        ({"a": [], "b": [9.0]}, set()),
        ({"a": [2.0, 0.5], "b": [1.0]}, set()),
        ({"a": [2.0, 0.5, 0.9], "b": [1.0, 0.7]}, {"b"}),
        ({"a": [1, 1, 1, 1], "b": [2, 2], "c": [3], "d": [4]}, {"b", "c", "d"}),
    ],
)
def test_the_worse_half_at_its_highest_rung_is_stopped(losses: dict[str, list[float]], stopped: set[str]) -> None:
    assert losers(losses) == stopped


def sweep_of(*granted: float | None, budget: float | None = 60.0) -> Sweep:
    cells = [Cell(str(index), [], usd) for index, usd in enumerate(granted)]
    return Sweep("s", "job.yaml", "0", 1, None, budget, cells)


def test_grants_never_exceed_the_budget_and_pass_on_what_was_not_spent() -> None:
    assert grant(sweep_of(None, None, None), {}) == 20
    assert grant(sweep_of(20.0, None, None), {}) == 20
    assert grant(sweep_of(20.0, None, None), {"0": 4.0}) == 28
    assert grant(sweep_of(20.0, 40.0, None), {}) == 0
    assert grant(sweep_of(None, budget=None), {}) is None


def test_its_file_reads_back_and_what_is_none_is_said(tmp_path: Path) -> None:
    path, sweep = tmp_path / "s" / "sweep.json", sweep_of(20.0, None)
    with pytest.raises(BadUsage, match="no such sweep"):
        Sweep.read(path)
    path.parent.mkdir()
    sweep.write(path)
    assert Sweep.read(path) == sweep
    for damaged in ("{", "[]", "{}", path.read_text().replace('"version": 1', '"version": 2')):
        path.write_text(damaged)
        with pytest.raises(LauncherError):
            Sweep.read(path)
