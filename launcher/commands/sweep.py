"""`dolphin sweep`: a run for each cell of a grid, one budget, losers stopped early. Owns when each is started and stopped.

Nothing is started before the sweep's file says so; a run is found again by its name, so that a cell never has two.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.commands.down import down
from launcher.commands.launch import Declined, LaunchOptions, launch, resume
from launcher.commands.report import write_report
from launcher.follow import screen
from launcher.follow.patience import patiently
from launcher.follow.report.page import has_libraries
from launcher.follow.status import Observation, observe_record, standing_of
from launcher.jobfile.load import load_job
from launcher.runs import ledger
from launcher.runs.errors import BadUsage, LauncherError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import EXIT_CODES, EndReason, RunState, is_over
from launcher.runs.sweep import VERSION, Cell, Sweep, grant, grid, losers

STATE_FILE = "sweep.json"
_LOOK_EVERY_S = 2.0
_GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """The command line."""

    settings: Sequence[str]
    budget_usd: float | None
    parallel: int
    on: str | None
    is_confirmed: bool
    as_json: bool


def sweep_command(job: Path, options: SweepOptions) -> int:
    """Start a sweep and attend to it until its end."""
    sweep = _new(job, options)
    what = f"{len(sweep.cells)} runs, {sweep.parallel} at a time"
    screen.say(f"sweep {sweep.name}: {what}, in {_folder(sweep.name)}")
    if not options.is_confirmed:
        if not sys.stdin.isatty():
            raise BadUsage("sweep asks before it starts, and there is no terminal to ask on; pass -y to start")
        most = f" for at most ${sweep.budget_usd:.2f}" if sweep.budget_usd is not None else ", without a budget"
        print(f"Start {what}{most}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Declined("not started")
    try:
        _folder(sweep.name).mkdir(parents=True)
        sweep.write(_folder(sweep.name) / STATE_FILE)
    except OSError as error:
        raise LauncherError(f"{_folder(sweep.name)}: cannot be written ({error.strerror})") from None
    return _attend(sweep, options.as_json)


def resume_sweep(name: str, as_json: bool) -> int:
    """Go on with a sweep whose command ended."""
    sweep = Sweep.read(_folder(name) / STATE_FILE)
    if _sha256(Path(sweep.job)) != sweep.job_sha256:
        raise BadUsage(
            f"{sweep.job}: was changed since the sweep began, so its runs would not compare; start a new sweep"
        )
    return _attend(sweep, as_json)


def _new(path: Path, options: SweepOptions) -> Sweep:
    """Every cell's job checked. Raises SpecErrors of the first that is wrong."""
    cells = grid(options.settings)
    first = load_job(path, cells[0])
    name = f"{first.name[:36].rstrip('-')}-{secrets.token_hex(2)}"
    sweep = Sweep(
        name, str(path.absolute()), _sha256(path), options.parallel, options.on, options.budget_usd,
        [Cell(f"{name}-{number}", overrides) for number, overrides in enumerate(cells, 1)],
    )  # fmt: skip
    for cell in sweep.cells:
        load_job(path, [*cell.overrides, f"name={cell.name}"])
    if not first.data.validation_sets:
        screen.say(
            "no validation set: no run is stopped early, and none is the best; data.validation_fraction holds one out"
        )
    return sweep


def _attend(sweep: Sweep, as_json: bool) -> int:
    with _alone(sweep):
        try:
            _start_what_was_cut_off(sweep)
            while not _look(sweep):
                time.sleep(_LOOK_EVERY_S)
        except KeyboardInterrupt:
            screen.say(f"its runs go on; `dolphin sweep --resume {sweep.name}` goes on with the others")
            return EXIT_CODES[EndReason.DETACHED]
        return _finish(sweep, as_json)


@contextlib.contextmanager
def _alone(sweep: Sweep) -> Iterator[None]:
    """The lock goes with the process. BadUsage where another command attends to this sweep."""
    descriptor = os.open(_folder(sweep.name) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BadUsage(f"{sweep.name}: another dolphin command attends to this sweep") from None
    finally:
        os.close(descriptor)


def _start_what_was_cut_off(sweep: Sweep) -> None:
    """A run whose command died while it was submitted, and that is not there: the same run again, under the same id."""
    for one in _observed(sweep).values():
        record = one.record
        if record.handle is None and record.submit_error is None and one.status.state is RunState.LOST:
            resume(record, LaunchOptions(is_detached=True))


def _look(sweep: Sweep) -> bool:
    """Stop who lost, start who can be; whether all is over."""
    seen = _observed(sweep)
    for cell in sweep.cells:
        one = seen.get(cell.name)
        if one and not is_over(one.status.state) and not cell.was_stopped and cell.name in losers(_losses(sweep, seen)):
            screen.say(f"{one.record.run_id}: is in the worse half by eval_loss; it saves and stops")
            if down(one.record.run_id, _GRACE_S) == 0:
                cell.was_stopped = True
                _write(sweep)
            seen = _observed(sweep)
    num_active = sum(not is_over(one.status.state) for one in seen.values())
    waiting = [cell for cell in sweep.cells if cell.name not in seen]
    for cell in waiting[: max(0, sweep.parallel - num_active)]:
        if not _start(sweep, cell, seen):
            return num_active == 0
        return False  # look again before the next
    return not waiting and num_active == 0


def _start(sweep: Sweep, cell: Cell, seen: dict[str, Observation]) -> bool:
    """Whether there was money for it."""
    if cell.granted_usd is None:
        spent = {
            name: usd
            for name, one in seen.items()
            if is_over(one.status.state) and (usd := standing_of(one).spent_usd) is not None
        }
        usd = grant(sweep, spent)
        if usd is not None and usd < 0.01:
            screen.say(f"{sweep.name}: the budget pays no further run")
            return False
        cell.granted_usd = usd
        _write(sweep)
    own = [f"name={cell.name}"] + ([f"budget={cell.granted_usd:.4f}"] if cell.granted_usd is not None else [])
    screen.say(f"{cell.name}: {', '.join(cell.overrides) or 'as the job says'}")
    options = LaunchOptions(on=sweep.on, overrides=[*cell.overrides, *own], is_confirmed=True, is_detached=True)
    try:
        launch(Path(sweep.job), options)
    except LauncherError as error:
        if cell.name not in _records(sweep):
            raise
        screen.say(f"{cell.name}: was not started: {error}")
    return True


def _write(sweep: Sweep) -> None:
    sweep.write(_folder(sweep.name) / STATE_FILE)


def _records(sweep: Sweep) -> dict[str, RunRecord]:
    """By cell's name. One that was never submitted is nothing yet: its command died before it asked for anything."""
    names = {cell.name for cell in sweep.cells}
    return {record.name: record for record in ledger.all_runs() if record.name in names and record.submissions}


@patiently
def _observed(sweep: Sweep) -> dict[str, Observation]:
    return {name: observe_record(record) for name, record in _records(sweep).items()}


def _losses(sweep: Sweep, seen: dict[str, Observation]) -> dict[str, list[float]]:
    return {
        cell.name: [loss for step, (_, loss) in sorted(seen[cell.name].view.evaluations.items()) if step > 0]
        for cell in sweep.cells
        if cell.name in seen
    }


def _finish(sweep: Sweep, as_json: bool) -> int:
    """The table, best first, and the page that compares. 0 where a run of it succeeded and none failed."""
    seen = _observed(sweep)
    rows = sorted((_row(cell, seen.get(cell.name)) for cell in sweep.cells), key=_rank)
    report = None
    if has_libraries() and seen:
        report = str(write_report([one.record for one in seen.values()], _folder(sweep.name) / "report.html"))
    spent = [row["spent_usd"] for row in rows if row["run"]]
    total = sum(spent) if None not in spent else None
    if as_json:
        print(json.dumps({"version": VERSION, "sweep": sweep.name, "spent_usd": total, "report": report, "runs": rows}))
    else:
        texts = [
            [
                str(row["run"] or "-"), ", ".join(row["settings"]), row["state"], str(row["step"] or "-"),
                "-" if row["eval_loss"] is None else f"{row['eval_loss']:.4f}",
                "-" if row["spent_usd"] is None else f"${row['spent_usd']:.2f}",
            ]
            for row in rows
        ]  # fmt: skip
        screen.table(("run", "settings", "state", "step", "eval_loss", "price"), texts, file=sys.stdout)
    if report:
        screen.say(f"report: {report}")
    states = {row["state"] for row in rows} - {"stopped early"}
    return 0 if states == {RunState.SUCCEEDED.value} else EXIT_CODES[EndReason.FAILED]


def _row(cell: Cell, one: Observation | None) -> dict[str, Any]:
    state = "not started" if one is None else "stopped early" if cell.was_stopped else one.status.state.value
    return {
        "run": one and one.record.run_id,
        "settings": cell.overrides,
        "state": state,
        "step": one and one.view.step,
        "eval_loss": one and one.view.eval_loss,
        "spent_usd": standing_of(one).spent_usd if one else None,
    }


def _rank(row: dict[str, Any]) -> tuple[bool, float]:
    loss = row["eval_loss"]
    return (loss is None or loss != loss, loss or 0.0)


def _folder(name: str) -> Path:
    if not name or Path(name).name != name:
        raise BadUsage(f"{name}: is no name of a sweep")
    return ledger.home() / "sweeps" / name


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadUsage(f"{path}: cannot be read ({error.strerror})") from None
