"""Staying with a run until it ends or the person leaves, and the last words of either. Starts and stops nothing."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.backends.base import Backend, BackendStatus
from launcher.follow import screen as console
from launcher.follow.follow import LogFrom, follow
from launcher.follow.patience import patiently
from launcher.follow.readers import ViewReader
from launcher.follow.status import Observation, as_json, model_of, observe, price_text, status_of, with_detail
from launcher.runs import ledger
from launcher.runs.errors import LauncherError, ReaderGone
from launcher.runs.ledger import RunRecord
from launcher.runs.states import EXIT_CODES, LIMIT_STATES, EndReason, RunState, exit_code_of, is_over
from launcher.units import seconds

_SAMPLE_CHARACTERS = 320


def follow_to_end(
    backend: Backend,
    record: RunRecord,
    start: LogFrom = LogFrom(),
    reader: ViewReader | None = None,
    *,
    json_wanted: bool = False,
    at_end: Callable[[RunRecord], None] = lambda record: None,
) -> int:
    """Follow the run and sum it up; the exit code it deserves, 130 where the person stopped following. `at_end` is called
    once it is over and summed up."""
    out = sys.stderr if json_wanted else sys.stdout
    try:
        with console.open_screen(out) as screen:
            follow(backend, record, screen, start, reader)
    except (KeyboardInterrupt, ReaderGone) as left:
        status = say_detached(backend, record)
        if json_wanted:
            print_json(observe(backend, record), EndReason.DETACHED)
        if isinstance(left, ReaderGone) and status is not None and is_over(status.state):
            return exit_code_of(status.state)  # `dolphin logs RUN | head` of a run that is over
        return EXIT_CODES[EndReason.DETACHED]
    seen = observe(backend, ledger.load(record.folder))
    sum_up(seen)
    if is_over(seen.status.state):
        at_end(seen.record)
    if json_wanted:
        print_json(seen, None)
    return exit_code_of(seen.status.state)


def sum_up(seen: Observation) -> None:
    """How the run ended, on standard error: validation losses, a sample answer, where the model is."""
    record, status, view = seen.record, seen.status, seen.view
    console.evaluation_table(view, sys.stderr)
    sample = seen.outcome.get("sample") or view.sample
    if isinstance(sample, dict) and status.state is RunState.SUCCEEDED:
        _say_sample(sample)
    price = f" ({price_text(status)})" if price_text(status) else ""
    console.say(f"{record.run_id}: {with_detail(status)}{price}")
    if view.stopped_early is not None and status.state is RunState.SUCCEEDED:
        console.say(f"  {unspent(view.stopped_early, status.price_usd_per_hour)}")
    model = model_of(seen)
    if model:
        console.say(f"model: {model}")
        if not Path(model).exists():
            console.say(f"  `dolphin fetch {record.run_id} DIR` brings it home")
    if status.state in LIMIT_STATES:
        key = LIMIT_STATES[status.state]
        console.say(
            f"  `dolphin resume {record.run_id} --set {key}=...` goes on with more; the log is {record.files.log}"
        )
    elif status.state in (RunState.PREEMPTED, RunState.CANCELLED, RunState.LOST, RunState.FAILED):
        saved = f" from step {view.saved_step}" if view.saved_step is not None else ""
        console.say(f"  `dolphin resume {record.run_id}` goes on{saved}; the log is {record.files.log}")


def unspent(stopped: dict[str, Any], usd_per_hour: float | None) -> str:
    """`1,200 steps were not trained: about 3 h 10 min, $12.60 not spent`, as far as known."""
    steps_left, seconds_left = stopped.get("steps_left"), stopped.get("seconds_left")
    words = f"{steps_left:,} steps were not trained" if isinstance(steps_left, int) else "it stopped early"
    if not isinstance(seconds_left, int | float):
        return words
    money = f", ${seconds_left / 3600 * usd_per_hour:,.2f} not spent" if usd_per_hour else ""
    return f"{words}: about {seconds(seconds_left)}{money}"


def _say_sample(sample: dict[str, Any]) -> None:
    """A held-out question, what the exported model answers, and what the data answers."""
    for name in ("question", "answer", "expected"):
        if isinstance(sample.get(name), str):
            text = textwrap.shorten(sample[name], _SAMPLE_CHARACTERS, placeholder=" ...")
            console.say(textwrap.fill(text, 110, initial_indent=f"  {name:10}", subsequent_indent=" " * 12))


@patiently
def say_detached(backend: Backend, record: RunRecord) -> BackendStatus | None:
    """The last words to a person who leaves: what the run does without them, asked and not assumed. Returns it, None where
    the backend does not say."""
    try:
        status = status_of(backend, ledger.load(record.folder))
    except LauncherError as error:
        console.say(f"Detached; whether the run goes on is not known now ({error}).")
        status = None
    if status is not None and is_over(status.state):
        console.say(f"{record.run_id}: {with_detail(status)}")
        return status
    if status is not None:
        hourly = status.price_usd_per_hour
        console.say(f"Detached; the run goes on{f' (${hourly:.2f}/h)' if hourly else ''}.")
    console.say(f"  come back: dolphin logs {record.run_id}")
    console.say(f"  stop it:   dolphin down {record.run_id}")
    return status


def print_json(seen: Observation, reason: EndReason | None) -> None:
    values = as_json(seen)
    values["trainer_exit_code"] = values["exit_code"]
    if reason is not None:
        values["exit_code"] = EXIT_CODES[reason]
    else:
        values["exit_code"] = exit_code_of(seen.status.state) if is_over(seen.status.state) else 0
    print(json.dumps(values, ensure_ascii=False), flush=True)
