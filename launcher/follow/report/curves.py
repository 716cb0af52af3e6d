"""Which curves a run, or several, are shown by. Owns the choice; `plots` draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher.follow.history import History, Point, is_loss, label_of, smoothed
from launcher.follow.report.facts import RunFacts
from launcher.follow.report.plots import Line, Plot
from launcher.units import GB

_SMOOTH_FROM = 40
"""Fewer points are shown as they are."""


def curves_of(history: History) -> list[Plot]:
    """Only those that have something to show."""
    marks = tuple(attempt.resumed_step for attempt in history.attempts if attempt.resumed_step)
    plots = [_loss(history, marks)]
    extra = [name for name in history.evaluation_names() if not is_loss(name)]
    for i, name in enumerate(extra):
        label = label_of(name)
        lines = [Line(label, history.evaluated(name), has_dots=True, colour=1)]
        plots.append(Plot(f"evaluation-{i}", f"{label}, on held-out data", "", lines, marks=marks))
    plots += [
        _one(history, "lr", "Learning rate", "learning rate", marks, colour=2),
        _smooth(history, "grad_norm", "Gradient norm", "norm", marks),
        _smooth(history, "tokens_per_second", "Speed", "tokens a second", marks),
        _one(history, "mfu", "Use of the GPUs' peak", "MFU", marks, colour=3),
        _waits(history, marks),
        _one(history, "gpu_memory_bytes", "Memory of the first GPU", "GB", marks, colour=4, scale=1 / GB),
        _one(history, "gpu_power_w", "Power of the first GPU", "W", marks, colour=5),
        _one(history, "gpu_temperature_c", "Temperature of the first GPU", "°C", marks, colour=5),
    ]
    return [plot for plot in plots if any(line.points for line in plot.lines)]


def compared(runs: Sequence[RunFacts]) -> list[Plot]:
    """The same curve of several runs in one plot."""
    found = []
    for name, title, unit, source in (
        ("loss", "Training loss", "loss", lambda h: smoothed(h.series("loss"))),
        ("eval_loss", "Validation loss", "loss", lambda h: h.evaluated("eval_loss")),
        ("lr", "Learning rate", "learning rate", lambda h: h.series("lr")),
        ("speed", "Speed", "tokens a second", lambda h: smoothed(h.series("tokens_per_second"))),
    ):
        lines = [
            Line(facts.record.run_id, source(facts.history), has_dots=name == "eval_loss", colour=i)
            for i, facts in enumerate(runs)
        ]
        lines = [line for line in lines if line.points]
        if lines:
            said = f"{title}: " + "; ".join(f"{line.label} {_fell(line.points)}" for line in lines)
            found.append(Plot(f"together-{name}", title, unit, lines, from_zero=name == "speed", said=said))
    return found


def _loss(history: History, marks: Sequence[int]) -> Plot:
    points = history.series("loss")
    is_long = len(points) > _SMOOTH_FROM
    lines = [Line("each step" if is_long else "training", points, is_faint=is_long)]
    if is_long:
        lines.append(Line("training, smoothed", smoothed(points)))
    names = [name for name in history.evaluation_names() if is_loss(name)]
    for i, name in enumerate(names):
        label = label_of(name).removesuffix(" loss")
        lines.append(Line(label, history.evaluated(name), has_dots=True, colour=1 + i))
    said = "; ".join(
        f"{line.label} loss {_fell(line.points)}" for line in lines if line.points and not (is_long and line.is_faint)
    )
    return Plot("loss", "Loss", "loss", lines, marks=marks, said=said)


def _fell(points: Sequence[Point]) -> str:
    finite = [value for _, value in points if math.isfinite(value)]
    return f"from {finite[0]:.4g} to {finite[-1]:.4g}" if finite else "has no finite value"


def _one(history: History, name: str, title: str, unit: str, marks: Sequence[int], *, colour: int, scale: float = 1.0) -> Plot:  # fmt: skip
    """Many parameters: what a curve is, and how it looks."""
    points = [(step, value * scale) for step, value in history.series(name)]
    said = f"{title}: {_fell(points)} {unit}" if points else ""
    return Plot(name, title, unit, [Line(unit, points, colour=colour)], marks=marks, from_zero=True, said=said)


def _smooth(history: History, name: str, title: str, unit: str, marks: Sequence[int]) -> Plot:
    points = history.series(name)
    lines = [Line("each step", points, is_faint=True), Line("smoothed", smoothed(points))]
    said = f"{title}: {_fell(lines[1].points)} {unit}" if points else ""
    return Plot(name, title, unit, lines if len(points) > _SMOOTH_FROM else lines[:1], marks=marks, from_zero=True, said=said)  # fmt: skip


def _waits(history: History, marks: Sequence[int]) -> Plot:
    seconds_of = dict(history.series("seconds"))
    lines = []
    for i, (name, label) in enumerate((("data_wait_s", "for data"), ("save_stall_s", "for saves"))):
        shares = [(step, value / seconds_of[step]) for step, value in history.series(name) if seconds_of.get(step)]
        lines.append(Line(label, smoothed(shares), colour=2 + i))
    return Plot("waits", "Share of a step that was waited", "", lines, marks=marks, from_zero=True, is_share=True)
