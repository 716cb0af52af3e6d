"""A sweep: its cells, who is stopped early, what each may cost, and its file. Pure but for the file.

The rule is successive halving as runs come in: rung r is a run's evaluation number 2^r after step 0. Of the runs that have reached a
rung, the worse half by the eval_loss there (rounded down) is stopped, as far as it has not passed a higher one.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launcher.runs.errors import BadUsage, LauncherError
from trainer.run.run_folder import write_atomic

VERSION = 1
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(slots=True)
class Cell:
    """One point of the grid, and the one run of it."""

    name: str
    """Of its run's job: how the run is found again where the command died between its start and the note of it."""
    overrides: list[str]
    granted_usd: float | None = None
    """The budget that its run was given; None before its start, and in a sweep without one."""
    was_stopped: bool = False
    """By the rule."""


@dataclass(slots=True)
class Sweep:
    name: str
    job: str
    """Path of the job file."""
    job_sha256: str
    parallel: int
    on: str | None
    budget_usd: float | None
    cells: list[Cell] = field(default_factory=list)

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """BadUsage where there is none, LauncherError where it is damaged or of another version."""
        try:
            values = json.loads(path.read_text())
            if values.pop("version") != VERSION:
                raise LauncherError(f"{path}: is of another version of dolphin; resume it with that one")
            return cls(**values | {"cells": [Cell(**cell) for cell in values["cells"]]})
        except FileNotFoundError:
            raise BadUsage(f"{path.parent.name}: there is no such sweep ({path} is missing)") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LauncherError(f"{path}: cannot be read ({error}); its runs are in `dolphin status --all`") from None


def grid(settings: Sequence[str]) -> list[list[str]]:
    """Overrides of each cell, the last setting varying fastest. BadUsage for one without a value."""
    axes = []
    for setting in settings:
        key, separator, text = setting.partition("=")
        values = split_values(text)
        if not separator or not key.strip() or not all(values):
            raise BadUsage(f"--set {setting}: write it as key=value,value; for example train.learning_rate=1e-5,2e-5")
        if key.strip() in ("name", "budget"):
            raise BadUsage(f"--set {key.strip()}: the sweep gives each of its runs its own")
        axes.append([f"{key.strip()}={value}" for value in dict.fromkeys(values)])
    return [list(cell) for cell in itertools.product(*axes)]


def split_values(text: str) -> list[str]:
    """At commas outside brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        if letter == "," and not quote and depth <= 0:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def losers(losses: Mapping[str, Sequence[float]]) -> set[str]:
    """Names of those to stop. `losses`: by name, in the cells' order, the eval_loss of each evaluation after step 0."""
    highest = {name: len(values).bit_length() - 1 for name, values in losses.items()}
    stopped: set[str] = set()
    for rung in range(max(highest.values(), default=-1) + 1):
        here = [name for name in losses if highest[name] >= rung]
        here.sort(key=lambda name: _order(losses[name][2**rung - 1]))
        stopped |= {name for name in here[len(here) - len(here) // 2 :] if highest[name] == rung}
    return stopped


def _order(loss: float | None) -> float:
    """What is not finite, or was not measured, is the worst."""
    return loss if loss is not None and math.isfinite(loss) else math.inf


def grant(sweep: Sweep, spent_usd: Mapping[str, float]) -> float | None:
    """Dollars for the next run: an equal share of what neither an ended run spent nor a started one may still spend. `spent_usd`: by
    name, of runs that ended and whose price is known. Held by each run itself, so that the sum holds also where no command watches.
    """
    if sweep.budget_usd is None:
        return None
    waiting = sum(cell.granted_usd is None for cell in sweep.cells)
    taken = sum(spent_usd.get(cell.name, cell.granted_usd) for cell in sweep.cells if cell.granted_usd is not None)
    return max(0.0, sweep.budget_usd - taken) / max(1, waiting)
