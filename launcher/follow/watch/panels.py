"""What a watched run looks like: rich renderables for a place of a given size. Reads nothing; decides what fits."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launcher.follow import standing
from launcher.follow.history import Attempt, History, Point, is_loss, label_of, smoothed
from launcher.follow.screen import numbers
from launcher.follow.status import gpu_text, price_text, speed_text, standing_of, with_detail
from launcher.follow.watch.charts import chart
from launcher.follow.watch.watched import Watched
from launcher.runs.states import RunState
from launcher.units import seconds

_STATE_STYLES = {RunState.SUCCEEDED: "green", RunState.FAILED: "red", RunState.BAD_INPUT: "red", RunState.LOST: "red"}
_SMALL_WIDTH = 110
"""Narrower than this, two curves stand side by side; else three."""


def head(watched: Watched, width: int) -> RenderableType:
    """Name, state, progress, speed, GPU, money and time: a line each, as far as known."""
    if watched.seen is None:
        return Text(f"{watched.record.run_id}: {watched.lost or 'asking'}")
    seen, view = watched.seen, watched.seen.view
    state = seen.status.state
    title = Text(seen.record.run_id, style="bold")
    title.append("  ")
    title.append(with_detail(seen.status), style=_STATE_STYLES.get(state, "yellow"))
    if view.phase and not watched.is_over:
        title.append(f"  {view.phase}", style="dim")
    lines: list[RenderableType] = [_cut(title, width)]
    if watched.lost:
        since = "" if watched.seen_at is None else f" of {seconds(watched.clock() - watched.seen_at)} ago"
        lost = f"no answer from {seen.record.backend} ({watched.lost}); shown is what was known{since}"
        lines.append(_cut(Text(lost, style="red"), width))
    step, total = max(watched.history.steps, default=view.step or 0), watched.history.total_steps
    if total:
        bar = Table.grid()  # a bar alone ends no line
        bar.add_row(ProgressBar(total=total, completed=min(step, total), width=width))
        lines.append(bar)
    texts = [numbers(view, with_time_left=not watched.is_over), speed_text(view), gpu_text(view), _money(watched)]
    broken = watched.history.not_finite()
    if broken:
        lines.append(
            Text(f"the loss is no finite number at {len(broken):,} steps, first at step {broken[0]:,}", style="red")
        )
    lines += [_cut(Text(text), width) for text in texts if text]
    return Group(*lines)


def _money(watched: Watched) -> str:
    assert watched.seen is not None
    rows = [] if watched.is_over else standing.rows(standing_of(watched.seen))
    price = price_text(watched.seen.status)
    return " · ".join([*([f"price {price}"] if price else []), *(f"{label} {value}" for label, value in rows)])


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text


def curves(watched: Watched, width: int, height: int) -> RenderableType:
    """As many curves as fit side by side: loss, speed, learning rate; below them, where there is room, MFU, memory, power."""
    if not watched.history.steps:
        return Text("no step was made yet: curves appear with the first ones", style="dim")
    per_row = 2 if width < _SMALL_WIDTH else 3
    wanted = _series(watched.history)
    num_rows = max(1, min(height // 8, -(-len(wanted) // per_row)))
    each = height // num_rows
    table = Table.grid(padding=(0, 1), expand=True)
    for _ in range(per_row):
        table.add_column(ratio=1)
    shown = [chart(title, lines, width // per_row - 1, each) for title, lines in wanted[: per_row * num_rows]]
    for row in range(0, len(shown), per_row):
        table.add_row(*shown[row : row + per_row])
    return table


def _series(history: History) -> list[tuple[str, list[tuple[str, list[Point]]]]]:
    losses = [("training", smoothed(history.series("loss")))]
    losses += [
        (label_of(name).removesuffix(" loss"), history.evaluated(name))
        for name in history.evaluation_names()
        if is_loss(name)
    ]
    found = [("loss", losses), ("tokens a second", [("speed", smoothed(history.series("tokens_per_second")))])]
    for name, title in (
        ("lr", "learning rate"),
        ("grad_norm", "gradient norm"),
        ("mfu", "MFU"),
        ("gpu_power_w", "power, W"),
    ):
        points = history.series(name)
        if points:
            found.append((title, [(title, points)]))
    return found


def time_line(history: History, width: int) -> RenderableType:
    """An attempt a stretch of the line, as long as it lasted; `|` is a save, `x` the end of an attempt that another followed."""
    start, end = history.started_at, history.ended_at
    if start is None or end is None or end <= start:
        return Text("")
    columns = max(10, width - 24)
    cells = [" "] * columns

    def at(moment: float) -> int:
        return min(columns - 1, int((moment - start) / (end - start) * columns))

    for attempt in history.attempts:
        for column in range(at(attempt.started_at), at(attempt.ended_at) + 1):
            cells[column] = "═" if _trains(attempt, start + (column + 0.5) / columns * (end - start)) else "─"
    for attempt in history.attempts:
        for save in attempt.saves:
            cells[at(save.at)] = "┃"
    for attempt in history.attempts[:-1]:
        cells[at(attempt.ended_at)] = "x"
    num = len(history.attempts)
    return Text(f"{num} attempt{'' if num == 1 else 's'} {''.join(cells)} {seconds(end - start)}", no_wrap=True)


def _trains(attempt: Attempt, moment: float) -> bool:
    phase = ""
    for begun, name in attempt.phases:
        if begun <= moment:
            phase = name
    return phase == "training"


def samples(watched: Watched, height: int) -> RenderableType:
    """The newest step's answers."""
    lines: list[Text] = []
    for sample in watched.samples:
        question = sample.get("question") or sample.get("prompt") or ""
        lines += [Text(f"step {sample.get('step')}: {question}", style="bold"), Text(f"  {sample.get('answer')}")]
    return (
        Text("\n").join(lines[:height])
        if lines
        else Text("no samples yet (`evaluate` in the job asks for them)", style="dim")
    )


def log(watched: Watched, height: int) -> RenderableType:
    return Text("\n", no_wrap=True, overflow="ellipsis").join(
        Text(line) for line in list(watched.log)[-max(1, height) :]
    )
