"""`dolphin report`: the page of one run or of several. Owns where it is written; launcher.follow.report makes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launcher.follow import screen
from launcher.follow.patience import patiently
from launcher.runs import ledger
from launcher.runs.errors import LauncherError
from launcher.runs.ledger import RunRecord
from trainer.run.run_folder import write_atomic

REPORT_FILE = "report.html"


def report_command(names: Sequence[str], output: Path | None) -> int:
    """Write the page, and its path on standard output. Without a name: of the newest run; of one run into its folder, of several
    into the working folder, where `output` says nothing else."""
    records = [ledger.find(name) for name in dict.fromkeys(names)] or [ledger.find(None)]
    target = output or (records[0].folder if len(records) == 1 else Path()) / REPORT_FILE
    print(write_report(records, target))
    return 0


def serve_command() -> int:
    """Serve the page of every run on loopback until Ctrl-C."""
    from launcher.follow.report.server import serve

    return serve(screen.say)


def report_at_end(record: RunRecord) -> None:
    """The page of a run that is over, in its folder. What keeps it from being drawn is a line: the run ended as it ended."""
    from launcher.follow.report.page import has_libraries

    target = record.folder / REPORT_FILE
    if not has_libraries() or _is_newer(target, record.files.events):
        return
    try:
        screen.say(f"report: {write_report([record], target)}")
    except (LauncherError, OSError) as error:
        screen.say(f"no report was written ({error}); `dolphin report {record.run_id}` tries again")


def _is_newer(page: Path, events: Path) -> bool:
    """Whether the page was drawn after the run's last word."""
    return page.exists() and events.exists() and page.stat().st_mtime > events.stat().st_mtime


@patiently
def write_report(records: Sequence[RunRecord], target: Path) -> Path:
    from launcher.follow.report.facts import facts_of
    from launcher.follow.report.page import check_libraries, write_page

    check_libraries()
    page = write_page([facts_of(record) for record in records])
    try:
        write_atomic(target, page)
    except OSError as error:
        raise LauncherError(
            f"{target}: cannot be written ({os.strerror(error.errno or 0)}); name another file with -o"
        ) from None
    return target.absolute()
