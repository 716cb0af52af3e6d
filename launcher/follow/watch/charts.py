"""Curves in letters, by plotext; one line of blocks where that is not installed. Owns their size and their axes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

from rich.text import Text

from launcher.follow.history import Point, thinned
from launcher.units import count

_BLOCKS = "▁▂▃▄▅▆▇█"
_SERIES = ("blue", "red", "green", "magenta")


def has_plotext() -> bool:
    return importlib.util.find_spec("plotext") is not None


def chart(title: str, series: Sequence[tuple[str, Sequence[Point]]], width: int, height: int) -> Text:
    """`series` are label and points. At least 20 x 5; a curve without a finite point says so."""
    drawn = []
    for label, points in series:
        finite = [(step, value) for step, value in thinned(points, width) if math.isfinite(value)]
        if finite:
            drawn.append((label, finite))
    if not drawn:
        return Text(f"{title}: nothing yet", style="dim")
    if not has_plotext() or width < 20 or height < 5:
        return Text("\n").join(Text(f"{label} {sparkline(points, width - len(label) - 20)}") for label, points in drawn)
    return _plotted(title, drawn, width, height)


def sparkline(points: Sequence[Point], width: int) -> str:
    """`▇▅▃▁ 8.37 to 2.80`."""
    values = [value for _, value in thinned(points, max(1, width // 2))]
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return f"{''.join(_BLOCKS[int((value - low) * scale)] for value in values)} {values[0]:.4g} to {values[-1]:.4g}"


def _plotted(title: str, drawn: Sequence[tuple[str, Sequence[Point]]], width: int, height: int) -> Text:
    import plotext

    plotext.clear_figure()
    plotext.plotsize(width, height)
    plotext.theme("clear")
    plotext.frame(False)
    for number, (label, points) in enumerate(drawn):
        steps, values = [step for step, _ in points], [value for _, value in points]
        named = {"label": label} if len(drawn) > 1 else {}
        plotext.plot(steps, values, marker="braille", color=_SERIES[number % len(_SERIES)], **named)
    first = min(points[0][0] for _, points in drawn)
    last = max(points[-1][0] for _, points in drawn)
    plotext.title(title)
    plotext.xticks([first, last], [str(first), count(last)])
    low = min(value for _, points in drawn for _, value in points)
    high = max(value for _, points in drawn for _, value in points)
    plotext.yticks(
        sorted({low, high}), [count(value) if value >= 1000 else f"{value:.3g}" for value in sorted({low, high})]
    )
    return Text.from_ansi(plotext.build())
