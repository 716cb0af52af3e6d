"""What a person sees: phases, progress and tables on standard error, the trainer's log on standard output.

Owns the two screens (a terminal, or plain lines) and the tables. Refuses to know backends. rich is loaded only where
there is a terminal to draw on, or a table to print.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TextIO

from launcher import streams
from launcher.config.untrusted import raw, shown
from launcher.follow.run_view import RunView, shown_measure, told_of
from launcher.runs.copying import Told
from launcher.runs.errors import ReaderGone
from launcher.units import count, seconds, size

_PROGRESS_EVERY_S = 30.0
"""Without a terminal, a progress line at most this often."""


class Screen(Protocol):
    """Where a followed run is shown."""

    def log(self, text: str) -> None:
        """The trainer's own words: whole lines."""

    def say(self, line: str) -> None:
        """One line of the story."""

    def progress(self, view: RunView) -> None: ...


class PlainScreen:
    """For pipes and files: the log as it is, and a line of progress now and then."""

    def __init__(self, log: TextIO, story: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._story, self._clock = log, story, clock
        self._said_at, self._said_step = clock(), 0

    def log(self, text: str) -> None:
        _write(self._log, text)

    def say(self, line: str) -> None:
        print(f"dolphin: {line}", file=self._story, flush=True)

    def progress(self, view: RunView) -> None:
        if view.step is None or view.step == self._said_step or self._clock() - self._said_at < _PROGRESS_EVERY_S:
            return
        self._said_at, self._said_step = self._clock(), view.step
        self.say(progress_line(view))


class LiveScreen:
    """For a terminal: a progress bar under the log. `log` is None where standard output is that terminal too."""

    def __init__(self, log: TextIO | None, progress: object) -> None:
        from rich.progress import Progress

        assert isinstance(progress, Progress)
        self._log, self._progress = log, progress
        self._task = progress.add_task("", total=None, numbers="", start=False)

    def log(self, text: str) -> None:
        if self._log is not None:
            _write(self._log, text)
            return
        from rich.text import Text

        self._progress.console.print(Text.from_ansi(shown(text).rstrip("\n")), soft_wrap=True)

    def say(self, line: str) -> None:
        from rich.text import Text

        self._progress.console.print(Text(shown(line), style="cyan"), soft_wrap=True)

    def progress(self, view: RunView) -> None:
        if view.total_steps is not None:
            self._progress.start_task(self._task)
        self._progress.update(
            self._task,
            description=shown(view.phase or "waiting"),
            total=view.total_steps,
            completed=view.step or 0,
            numbers=numbers(view),
        )


@contextlib.contextmanager
def open_screen(log: TextIO) -> Iterator[Screen]:
    """The screen for this process's standard error; `log` is where the trainer's log goes."""
    if not sys.stderr.isatty():
        yield PlainScreen(log, sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(file=raw(sys.stderr), highlight=False)  # the bar moves the cursor
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(),
        TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        yield LiveScreen(None if log.isatty() else log, progress)


@contextlib.contextmanager
def copying(what: str) -> Iterator[Callable[[Told], None]]:
    """A bar on standard error for a copy that tells how far it is; lines now and then where that is no terminal."""
    if not sys.stderr.isatty():
        said_at = time.monotonic()

        def see(told: Told) -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= _PROGRESS_EVERY_S:
                said_at = time.monotonic()
                say(f"{what}: {size(told.arrived)} of {size(told.total)}")

        yield see
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
    console = Console(file=raw(sys.stderr), highlight=False)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task(what, total=None)
        yield lambda told: progress.update(task, total=told.total, completed=told.arrived)


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        streams.discard_output()
        raise ReaderGone from None
    except OSError as error:  # a full disk: the run goes on, and so does who waits for its end
        say(f"standard output cannot be written ({error.strerror}); the log is shown no further")
        streams.discard_output()


def numbers(view: RunView, *, with_time_left: bool = True) -> str:
    """`step 840/3420 · loss 0.5923 · 12.3k tokens/s · 3 h 12 min left`, as far as known."""
    parts = []
    if view.step is not None or view.total_steps is not None:
        parts.append(f"step {view.step or 0}/{view.total_steps if view.total_steps is not None else '?'}")
    if view.loss is not None:
        parts.append(f"loss {view.loss:.4f}")
    if view.tokens_per_second is not None:
        parts.append(f"{count(view.tokens_per_second)} tokens/s")
    if with_time_left and view.seconds_left is not None:
        parts.append(f"{seconds(view.seconds_left)} left")
    return " · ".join(parts)


def progress_line(view: RunView) -> str:
    return ": ".join(part for part in (view.phase, numbers(view)) if part)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, file: TextIO, title: str | None = None) -> None:
    """Aligned columns, without borders: it survives a pipe, a narrow window and a bug report."""
    widths = [max(len(str(row[i])) for row in (columns, *rows)) for i in range(len(columns))]
    if title:
        print(title, file=file)
    for row in (columns, *rows):
        cells = [str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  " + "  ".join(cells).rstrip(), file=file)
    file.flush()


def evaluation_table(view: RunView, file: TextIO) -> None:
    """What was measured, a row an evaluation; nothing where nothing was evaluated."""
    if not view.measures:
        return
    others = list(dict.fromkeys(name for measures in view.measures.values() for name in told_of(measures)))
    rows = []
    for step, measures in sorted(view.measures.items()):
        epoch, loss = view.evaluations.get(step, (None, None))
        rows.append(
            [
                str(step),
                f"{epoch:.2f}" if epoch is not None else "",
                f"{loss:.4f}" if loss is not None else "",
                *(shown_measure(name, measures[name]) if name in measures else "" for name in others),
                *(["best"] if step == view.best_step else []),
            ]
        )
    if view.best_step is not None:
        rows = [[*row, ""][: 4 + len(others)] for row in rows]
    table(["step", "epoch", "validation loss", *others, *([""] if view.best_step is not None else [])], rows, file=file)


def say(line: str) -> None:
    """One line for the person, on standard error."""
    print(line, file=sys.stderr, flush=True)
