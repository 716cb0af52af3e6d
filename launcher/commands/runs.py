"""`logs`, `status`, `fetch` and `forget`: commands on a run that exists. Refuses to know any particular backend."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.backends.base import Fetchable, get_backend
from launcher.commands.report import report_at_end
from launcher.follow import screen
from launcher.follow.attend import follow_to_end
from launcher.follow.follow import LogFrom, show_log
from launcher.follow.patience import patiently
from launcher.follow.status import (
    Observation,
    as_json,
    as_rows,
    observe_record,
    run_table,
    was_never_taken_in,
    was_refused,
    with_detail,
)
from launcher.runs import ledger
from launcher.runs.copying import looked_on
from launcher.runs.errors import BROKEN_FILES, BackendError, BadUsage, broken
from launcher.runs.ledger import RunRecord
from launcher.runs.states import EXIT_CODES, EndReason, exit_code_of, is_over
from trainer.run.exits import ExitCode
from trainer.run.spec import NodeJob

_NUM_STORY_LINES = 8


def logs(record: RunRecord, start: LogFrom, *, is_following: bool) -> int:
    """The log, followed to the run's end unless told not to; then the exit code is the run's."""
    if was_refused(record):
        seen = observe_record(record)
        if is_over(seen.status.state):
            return _log_of_refused(record, seen, start, is_following=is_following)
    backend = get_backend(record.backend)
    if is_following:
        return follow_to_end(backend, record, start, at_end=report_at_end)
    show_log(backend, record, screen.PlainScreen(sys.stdout, sys.stderr), start)
    return 0


def _log_of_refused(record: RunRecord, seen: Observation, start: LogFrom, *, is_following: bool) -> int:
    """What earlier starts left, as far as the backend can be asked, and why there is no more: nothing is to be waited for."""
    with contextlib.suppress(BackendError):
        show_log(get_backend(record.backend), record, screen.PlainScreen(sys.stdout, sys.stderr), start)
    screen.say(f"{record.run_id}: {with_detail(seen.status)}")
    return exit_code_of(seen.status.state) if is_following else 0


@patiently
def status(record: RunRecord, *, json_wanted: bool) -> int:
    """What the run does: on standard output, as this is what was asked for."""
    seen = observe_record(record)
    if json_wanted:
        print(json.dumps(as_json(seen), ensure_ascii=False, indent=2))
    else:
        _tell(seen)
    return 0


def _tell(seen: Observation) -> None:
    for label, value in as_rows(seen):
        print(f"{label:16}{value}")
    story = seen.view.story[-_NUM_STORY_LINES:]
    if story:
        print()
    for line in story:
        print(f"  {line}")


@patiently
def status_of_newest() -> int:
    """The newest run, or a table of those that are active where several are. A backend is asked once about each, and about none
    that this machine's files know to be over; one that does not answer hides no other run."""
    newest, looked = ledger.find(None), {}
    candidates = [record for record in ledger.all_runs() if _may_be_active(record)]
    for record in candidates if len(candidates) > 1 else ():
        with contextlib.suppress(*BROKEN_FILES):
            looked[record.run_id] = observe_record(record)
    active = [seen for seen in looked.values() if not is_over(seen.status.state)]
    if len(active) > 1:
        _table(active)
    else:
        _tell(looked.get(newest.run_id) or observe_record(newest))
    return 0


def _may_be_active(record: RunRecord) -> bool:
    outcome = record.files.read_outcome()
    if was_refused(record):
        return False
    if outcome is None:
        return True
    # A cluster starts a run again that was preempted, but for one that was taken down.
    return outcome.get("exit_code") == ExitCode.PREEMPTED and record.down_requested_at is None


@patiently
def status_of_all(*, json_wanted: bool) -> int:
    """Every run, newest first."""
    seen, problems = [], []
    records = ledger.all_runs()
    for record in records:
        try:
            seen.append(observe_record(record))
        except BROKEN_FILES as error:  # one unreachable cloud, or one run's broken files, must not hide the other runs
            problems.append(f"{record.run_id}: {broken(error)}")
    if json_wanted:
        print(json.dumps([as_json(one) for one in seen], ensure_ascii=False, indent=2))
    elif seen:
        _table(seen)
    elif not records:
        screen.say(f"there is no run in {ledger.runs_dir()}; `dolphin launch job.yaml` makes one")
    for problem in problems:
        screen.say(problem)
    for run_id in ledger.unreadable_runs():
        screen.say(f"{run_id}: its record cannot be read; `dolphin down {run_id}` stops what there is of it")
    return EXIT_CODES[EndReason.BACKEND] if problems else 0


def _table(seen: Sequence[Observation]) -> None:
    screen.table(["run", "on", "state", "step", "loss", "started"], run_table(seen), file=sys.stdout)


@patiently
def fetch(record: RunRecord, target: Path, what: Fetchable) -> int:
    """Bring the model (or the checkpoints, or the log) home; its path on standard output."""
    backend = get_backend(record.backend)
    with screen.copying(what) as see, looked_on(see):
        path = backend.fetch(record, what, target)
    print(path)
    return 0


@patiently
def forget(record: RunRecord) -> int:
    """Take a run that is over out of the ledger, once its backend has nothing of it left. Results are kept, and named."""
    with ledger.locked(record) as record:
        seen = observe_record(record)
        if not is_over(seen.status.state):
            raise BadUsage(
                f"{record.run_id}: is {with_detail(seen.status)}; `dolphin down {record.run_id}` stops it, then it can be forgotten"
            )
        _remove_leftovers(record)
        published = _published(record)
        kept = ledger.forget(record)
    screen.say(f"{record.run_id}: forgotten ({seen.status.state.value})")
    for path in (*kept, *published):
        screen.say(f"  kept: {path}")
    return 0


def _remove_leftovers(record: RunRecord) -> None:
    """What a run that is over may have left with its backend; BackendError where it stays, or is not known."""
    if record.options.get("cluster"):
        return  # the cluster is the user's, warm for other runs
    try:
        report = get_backend(record.backend).down(record, 0.0)
    except BackendError as error:
        if was_never_taken_in(record):
            return
        raise BackendError(
            f"{record.run_id}: what {record.backend} has left of it is not known ({error}); nothing was forgotten"
        ) from None
    if not report.is_gone:
        raise BackendError(f"{record.run_id}: not all of it is gone: {'; '.join(report.left)}; nothing was forgotten")


def _published(record: RunRecord) -> list[str]:
    """Where the run's checkpoints and model are beside its folder, if anywhere."""
    try:
        store = NodeJob.read(record.files.train_json).spec.checkpoint.store
    except (OSError, ValueError):
        return []
    return [f"{store.rstrip('/')}/{record.run_id}"] if store and not was_refused(record) else []
