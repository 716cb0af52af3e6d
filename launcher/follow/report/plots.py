"""Curves as inline SVG, by matplotlib. Owns how a plot looks; decides nothing of what is in it.

Text stays text (a reader can select and read it out), colours are CSS variables (the page's light and dark apply), and nothing in
it depends on the moment: the same history gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from launcher.follow.history import Attempt, Point, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN = 4.7, 2.5
"""Small, so that a plot that fills a phone's width still has text that can be read."""
NUM_BUCKETS = 300
VARIABLES = {
    "#010101": "--ink", "#010102": "--muted", "#010103": "--grid",
    "#010111": "--c1", "#010112": "--c2", "#010113": "--c3", "#010114": "--c4", "#010115": "--c5", "#010116": "--c6",
}  # fmt: skip
"""Colours that matplotlib is given, and the page's variables that take their place."""
INK, MUTED, GRID, *SERIES = VARIABLES


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    points: Sequence[Point]
    is_faint: bool = False
    has_dots: bool = False
    colour: int = 0
    """Which of the page's series colours."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over steps. `name` makes the ids of its SVG the page's only ones."""

    name: str
    title: str
    unit: str
    lines: Sequence[Line]
    is_logarithmic: bool = False
    from_zero: bool = False
    is_share: bool = False
    """Values are parts of 1, shown as percents."""
    marks: Sequence[int] = field(default=())
    """Steps at which the run went on after an interruption."""
    said: str = ""
    """The plot in a sentence, for who does not see it."""


def draw(plot: Plot) -> str:
    """The `<svg>` of a plot; it scales with the width of its place."""
    from matplotlib.ticker import PercentFormatter

    figure, axes = _figure()
    for line in plot.lines:
        points = thinned(line.points, NUM_BUCKETS)
        steps, values = [p[0] for p in points], [p[1] for p in points]
        colour = SERIES[line.colour % len(SERIES)]
        axes.plot(
            steps,
            values,
            color=colour,
            linewidth=0.8 if line.is_faint else 1.6,
            alpha=0.35 if line.is_faint else 1.0,
            marker="o" if line.has_dots or len(points) == 1 else None,
            markersize=3.5,
            label=line.label,
        )
    for step in plot.marks:
        axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    if plot.is_logarithmic:
        axes.set_yscale("log")
    elif plot.from_zero:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel(plot.unit)
    axes.locator_params(axis="x", integer=True)
    if plot.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(plot.lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _svg(figure, plot.name, plot.said or plot.title)


def draw_time_line(attempts: Sequence[Attempt], said: str, name: str) -> str:
    """A bar an attempt over the hours of the run: training thick, what comes before and after it thin, saves as ticks."""
    start = attempts[0].started_at
    last = max(attempt.ended_at for attempt in attempts)
    unit_s, unit = (3600.0, "hours") if last - start > 2 * 3600 else (60.0, "minutes")
    figure, axes = _figure(min(5.5, 1.1 + 0.32 * len(attempts)))
    for row, attempt in enumerate(attempts):
        for (begin, phase), end in zip(
            attempt.phases, [at for at, _ in attempt.phases[1:]] + [attempt.ended_at], strict=True
        ):
            is_training = phase == "training"
            height = 0.62 if is_training else 0.26
            bar = [((begin - start) / unit_s, max(end - begin, 0.0) / unit_s)]
            axes.broken_barh(bar, (row - height / 2, height), facecolors=SERIES[0 if is_training else 1])
        for save in attempt.saves:
            at = (save.at - start) / unit_s
            axes.plot([at, at], [row - 0.42, row + 0.42], color=INK, linewidth=0.9)
    axes.set_yticks(range(len(attempts)), [str(attempt.number) for attempt in attempts])
    axes.set_ylim(len(attempts) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_ylabel("attempt")
    axes.set_xlabel(f"{unit} since the start")
    axes.grid(visible=False, axis="y")
    return _svg(figure, name, said)


def _figure(height_in: float = HEIGHT_IN) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The page's own font is as wide as the reader's machine makes it, so that text is left as text and sized generously.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dolphin", "path.simplify": True})
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.grid(visible=True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.xaxis.label.set(color=MUTED, fontsize=9)
    axes.yaxis.label.set(color=MUTED, fontsize=9)
    return figure, axes


def _svg(figure: Figure, name: str, said: str) -> str:
    out = io.StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=metadata)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?|<style.*?</style>", "", text, flags=re.DOTALL)  # the page's own hold
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    head, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    label = re.sub(r"[<>&\"]", " ", said)
    return f'<svg {view[0] if view else ""} role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
