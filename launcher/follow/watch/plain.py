"""The same view without textual: rich redraws it until Ctrl-C or the run's end."""

from __future__ import annotations

import sys
import time

from rich.console import Console, Group
from rich.live import Live

from launcher.follow.watch import panels
from launcher.follow.watch.pace import Pace
from launcher.follow.watch.watched import Watched


def show(watched: Watched) -> None:
    """Returns once the run is over; KeyboardInterrupt is the caller's. Without a terminal, one picture of now."""
    console = Console(file=sys.stdout, highlight=False)
    pace = Pace()
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            watched.look()
            with pace.measured():
                live.update(_picture(watched, console.width, console.height), refresh=True)
            if watched.is_over or not console.is_terminal:
                break
            time.sleep(pace.pause_s())
    if console.is_terminal:
        console.print(_picture(watched, console.width, console.height))


def _picture(watched: Watched, width: int, height: int) -> Group:
    room = max(6, height - 12)
    return Group(
        panels.head(watched, width),
        panels.curves(watched, width, room // 2 + 2),
        panels.time_line(watched.history, width),
        panels.log(watched, room - room // 2 - 2),
    )
