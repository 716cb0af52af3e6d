"""`dolphin watch`: a run on the whole terminal. Owns which runs, and what stands in where textual is not installed."""

from __future__ import annotations

import importlib.util
import sys

from launcher.backends.base import get_backend
from launcher.commands.down import down
from launcher.follow import screen
from launcher.follow.attend import say_detached
from launcher.follow.watch.watched import Watched
from launcher.runs import ledger
from launcher.runs.states import EXIT_CODES, EndReason

GRACE_S = 60.0


def watch_command(run: str | None) -> int:
    """The run, or the newest; `n` goes on to the next one. Leaving it leaves the run alone."""
    chosen = ledger.find(run)
    records = [chosen, *(record for record in ledger.all_runs() if record.run_id != chosen.run_id)]
    if importlib.util.find_spec("textual") is not None and sys.stdout.isatty() and sys.stdin.isatty():
        from launcher.follow.watch.app import WatchApp

        to_stop = WatchApp(records).run()
        return 0 if to_stop is None else down(to_stop.run_id, GRACE_S)
    from launcher.follow.watch.plain import show

    if sys.stdout.isatty():
        screen.say("keys and tabs need textual: pip install 'dolphin-launcher[watch]'; Ctrl-C leaves the run alone")
    try:
        show(Watched(chosen))
    except KeyboardInterrupt:
        say_detached(get_backend(chosen.backend), chosen)
        return EXIT_CODES[EndReason.DETACHED]
    return 0
