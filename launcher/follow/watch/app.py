"""The full-screen view, by textual. `q` leaves the run alone; what stops it is asked about first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.console import RenderableType
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Key
from textual.widget import Widget
from textual.widgets import Footer, Static, TabbedContent, TabPane
from textual.worker import get_current_worker

from launcher.follow.watch import panels
from launcher.follow.watch.pace import Pace
from launcher.follow.watch.watched import Watched
from launcher.runs.ledger import RunRecord

_LOG, _SAMPLES = "log", "samples"


class Panel(Widget):
    """A part that draws itself for the room that it has."""

    def __init__(
        self, app: WatchApp, draw: Callable[[Watched, int, int], RenderableType], id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self._watching, self._draw_for = app, draw

    def render(self) -> RenderableType:
        with self._watching.pace.measured():
            return self._draw_for(self._watching.watched, max(20, self.size.width), max(1, self.size.height))


class WatchApp(App[RunRecord | None]):
    """Shows one of `records` at a time; the first first. Returns the run that its reader wants to be stopped, None for none."""

    TITLE = "dolphin watch"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: auto; padding: 0 1; }
    #curves { height: 2fr; min-height: 6; padding: 0 1; }
    #time { height: 1; padding: 0 1; }
    TabbedContent { height: 1fr; min-height: 4; }
    TabPane { padding: 0 1; }
    TabPane Panel { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Leave (the run goes on)"),
        Binding("n", "next_run", "Next run"),
        Binding("l", "show('log')", "Log"),
        Binding("a", "show('samples')", "Samples"),
        Binding("s", "stop", "Save and stop"),
        Binding("y", "confirm", "Yes, stop it", show=False),
    ]

    def __init__(self, records: Sequence[RunRecord]) -> None:
        super().__init__()
        self._runs = [Watched(record) for record in records]
        self._shown = 0
        self.pace = Pace()
        self._is_asking = False
        self._drawn: tuple[int, int, int, int] | None = None

    @property
    def watched(self) -> Watched:
        return self._runs[self._shown]

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Panel(self, panels.curves, id="curves")
        yield Panel(self, lambda watched, width, _: panels.time_line(watched.history, width), id="time")
        with TabbedContent(initial=_LOG, id="below"):
            with TabPane("Log", id=_LOG):
                yield Panel(self, lambda watched, _, height: panels.log(watched, height))
            with TabPane("Samples", id=_SAMPLES):
                yield Panel(self, lambda watched, _, height: panels.samples(watched, height))
        yield Footer()

    def on_mount(self) -> None:
        self.run_worker(self._keep_looking, thread=True, exclusive=True)

    def _keep_looking(self) -> None:
        worker = get_current_worker()
        while not worker.is_cancelled:
            watched = self.watched
            watched.look()
            if worker.is_cancelled:
                return
            self.call_from_thread(self._draw)
            waited, pause_s = 0.0, self.pace.pause_s()
            while waited < pause_s and watched is self.watched and not worker.is_cancelled:
                time.sleep(0.2)
                waited += 0.2

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        watched, size = self.watched, self.size
        state = (self._shown, watched.version, size.width, size.height)
        if state == self._drawn or not size.width:
            return
        self._drawn = state
        self.query_one("#head", Static).update(panels.head(watched, max(20, size.width - 2)))
        for panel in self.query(Panel):
            panel.refresh()

    def action_next_run(self) -> None:
        self._shown = (self._shown + 1) % len(self._runs)
        self._draw()

    def action_show(self, tab: str) -> None:
        self.query_one("#below", TabbedContent).active = tab

    def action_stop(self) -> None:
        if self.watched.is_over:
            self.notify("this run is over already")
            return
        self._is_asking = True
        self.notify(f"save and stop {self.watched.record.run_id}? y stops it, any other key does not", timeout=15)

    def on_key(self, event: Key) -> None:
        if event.key not in ("s", "y"):
            self._is_asking = False

    def action_confirm(self) -> None:
        if self._is_asking:
            self.exit(self.watched.record)
