"""`down`: stops a run, whatever became of its folder. First what costs money, then what is written about it.

A full or read-only DOLPHIN_HOME, a record that cannot be read, a command that holds the run's lock: each is said, and none
keeps a process or a node alive. Refuses to know any particular backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from launcher.backends.base import BACKENDS, Backend, DownReport, get_backend
from launcher.follow import screen
from launcher.follow.patience import patiently
from launcher.follow.run_view import RunView
from launcher.follow.status import observe, observe_record, status_of, was_never_taken_in, with_detail
from launcher.runs import ledger
from launcher.runs.errors import BROKEN_FILES, BackendError, BadUsage, LauncherError, broken
from launcher.runs.ledger import RunRecord
from launcher.runs.states import EXIT_CODES, EndReason, RunState, is_over

_LOCK_WAIT_S = 30.0


@patiently
def down(run: str | None, grace_s: float) -> int:
    """Stop the run (the newest where it is None); 0 once it is known to be gone."""
    try:
        record = ledger.find(run)
    except LauncherError as error:
        if run is None:
            raise
        return _down_without_record(run, grace_s, error)
    if was_never_taken_in(record):
        return _down_of_refused(record, grace_s)
    return _down(record, grace_s)


def _down_of_refused(record: RunRecord, grace_s: float) -> int:
    """Where its backend cannot be asked, the record says that nothing of it can be there."""
    try:
        return _down(record, grace_s)
    except BackendError as error:
        screen.say(f"{record.run_id}: {with_detail(observe_record(record).status)}")
        screen.say(f"  {record.backend} never took it in, so nothing of it runs ({record.backend} now: {error})")
        return 0


def _down(record: RunRecord, grace_s: float) -> int:
    backend = get_backend(record.backend)
    with _held_where_possible(record) as held:
        record = held or record
        if not _is_known_to_be_over(backend, record, grace_s):
            record = _note_that_it_was_asked(record)
        report = backend.down(record, grace_s)
    if held is None and ledger.is_locked(record):
        screen.say(
            f"{record.run_id}: another dolphin command still works on this run, and may start it again; end that, then `dolphin down` again"
        )
        _say(record, report, None)
        return EXIT_CODES[EndReason.BACKEND]
    try:
        seen = observe(backend, record)
    except BROKEN_FILES:
        return _say(record, report, None)
    code = _say(record, report, seen.status.state)
    if report.is_gone and seen.status.state is not RunState.SUCCEEDED:
        screen.say(_what_is_kept(record, seen.view))
    return code


@contextlib.contextmanager
def _held_where_possible(record: RunRecord) -> Iterator[RunRecord | None]:
    """The run's lock, and its record as it is now; None where it cannot be had, which is said."""
    with contextlib.ExitStack() as stack:
        held = None
        try:
            held = stack.enter_context(ledger.locked(record, wait_s=_LOCK_WAIT_S))
        except LauncherError as error:
            screen.say(f"{error}; stopping the run all the same")
        except OSError as error:
            screen.say(f"{record.folder}: cannot lock the run ({error.strerror}); stopping it all the same")
        yield held


def _is_known_to_be_over(backend: Backend, record: RunRecord, grace_s: float) -> bool:
    how = f"up to {grace_s:.0f} s for it to save" if grace_s else "killing it, without a save"
    try:
        before = status_of(backend, record)
    except BROKEN_FILES as error:
        screen.say(f"{record.run_id}: its state is not known: {broken(error)}; stopping ({how})")
        return False
    if is_over(before.state):
        return True
    screen.say(f"{record.run_id}: is {before.state.value}; stopping ({how})")
    return False


def _note_that_it_was_asked(record: RunRecord) -> RunRecord:
    """Followers in other terminals read it; where it cannot be written, this command knows it all the same."""
    try:
        return ledger.update(record, down_requested_at=time.time())
    except OSError as error:
        screen.say(f"{record.folder}: cannot write ({error.strerror}); stopping the run all the same")
    except LauncherError as error:
        screen.say(f"{error}; stopping the run all the same")
    return dataclasses.replace(record, down_requested_at=time.time())


def _down_without_record(run: str, grace_s: float, error: LauncherError) -> int:
    """Stop what carries this run id, asking every backend. Raises `error` where there is neither a run nor a folder of it."""
    run_id = ledger.without_record(run)
    found, silent = 0, []
    for name in BACKENDS:
        try:
            backend = get_backend(name)
            handle = backend.find(run_id or run)
        except LauncherError as problem:
            silent.append(f"{name}: {problem}")
            continue
        if handle is None:
            continue
        found += 1
        record = RunRecord(
            run_id or run, ledger.folder_of(run_id or run), run_id or run, name, 0.0, handle=handle, submissions=1
        )
        screen.say(f"{record.run_id}: has no record that can be read, and runs on {name}; stopping")
        code = _say(record, backend.down(record, grace_s), None)
        if code:
            return code
    if found:
        return 0
    if run_id is None and isinstance(error, BadUsage):
        raise error
    for line in silent:
        screen.say(f"not asked: {line}")
    if silent:
        raise BackendError(f"{error}; whether anything of it runs is not known")
    screen.say(f"{error}; nothing of it runs")
    return 0


def _say(record: RunRecord, report: DownReport, state: RunState | None) -> int:
    if not report.is_gone:
        screen.say(f"{record.run_id}: NOT gone: {report.detail}; what is left:")
        for item in report.left:
            screen.say(f"  {item}")
        return EXIT_CODES[EndReason.BACKEND]
    price = f"; ${report.price_usd:.2f} in all" if report.price_usd else ""
    screen.say(f"{record.run_id}: {f'{state.value}, ' if state else ''}{report.detail}{price}")
    return 0


def _what_is_kept(record: RunRecord, view: RunView) -> str:
    if view.saved_step is None:
        return f"  nothing was saved yet; `dolphin resume {record.run_id}` begins again"
    return f"  saved at step {view.saved_step}; `dolphin resume {record.run_id}` goes on from there"
