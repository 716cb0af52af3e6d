"""The page: one HTML file of one run or of several, which needs nothing else. Owns its sections; jinja2 writes it."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.follow.report import tables
from launcher.follow.report.curves import compared, curves_of
from launcher.follow.report.facts import RunFacts
from launcher.follow.report.plots import Plot, draw, draw_time_line
from launcher.follow.status import when
from launcher.runs.errors import BadUsage
from launcher.runs.ledger import RunRecord
from launcher.units import seconds

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_MAX_SAMPLES = 12
_MAX_ATTEMPTS_DRAWN = 60


@dataclass(frozen=True, slots=True)
class Figure:
    title: str
    svg: str
    said: str


def has_libraries() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("matplotlib", "jinja2"))


def check_libraries() -> None:
    """BadUsage, with the way out, where the page cannot be drawn here."""
    if not has_libraries():
        raise BadUsage("a report is drawn by matplotlib and jinja2: pip install 'dolphin-launcher[report]'")


def write_page(runs: Sequence[RunFacts], *, is_live: bool = False) -> str:
    """The page of `runs`, in their order. `is_live`: it asks its server for a newer one now and then."""
    together = None
    if len(runs) > 1:
        together = {
            "differing": tables.differing(runs),
            "side_by_side": tables.side_by_side(runs),
            "figures": [_figure(plot) for plot in compared(runs)],
        }
    names = ", ".join(facts.record.run_id for facts in runs)
    sections = [_sections(facts, is_alone=len(runs) == 1) for facts in runs]
    return _render(title=names, runs=sections, together=together, index=None, is_live=is_live)


def write_index(records: Sequence[RunRecord]) -> str:
    """A page that leads to the page of every run. Says what this machine's files say; asks no backend."""
    lines = []
    for record in records:
        outcome = record.files.read_outcome() or {}
        lines.append((record.run_id, record.backend, when(record.created_at), str(outcome.get("state") or "")))
    return _render(title="dolphin: runs", runs=[], together=None, index=lines, is_live=True)


def _render(**values: Any) -> str:
    check_libraries()
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_TEMPLATE.read_text()).render(**values)


def _figure(plot: Plot, prefix: str = "") -> Figure:
    return Figure(plot.title, draw(dataclasses.replace(plot, name=prefix + plot.name)), plot.said)


def _sections(facts: RunFacts, *, is_alone: bool) -> dict[str, Any]:
    history = facts.history
    prefix = "" if is_alone else f"{facts.record.run_id}-"
    time_line = None
    if any(attempt.phases for attempt in history.attempts):
        num = len(history.attempts)
        spent = seconds(tables.duration_s(facts))
        said = f"{num} attempt{'' if num == 1 else 's'} over {spent}; training is thick, saves are ticks"
        shown = history.attempts[-_MAX_ATTEMPTS_DRAWN:]
        time_line = Figure("Time line", draw_time_line(shown, said, f"{prefix}time-line"), said)
    return {
        "id": facts.record.run_id,
        "name": facts.record.name,
        "state": facts.seen.status.state.value,
        "headline": tables.headline(facts),
        "notes": tables.notes(facts),
        "figures": [_figure(plot, prefix) for plot in curves_of(history)],
        "time_line": time_line,
        "tables": [
            (title, table)
            for title, table in (
                ("Planned against actual", tables.planned(facts)),
                ("Attempts", tables.attempts(facts)),
                ("What interruptions cost", tables.interruptions(facts)),
                ("Nodes", tables.nodes(facts)),
                ("Evaluations", tables.evaluations(facts)),
                ("The finished model's evaluation", tables.benchmarks(facts)),
                ("Data", tables.data(facts)),
            )
            if table is not None
        ],
        "samples": _samples(facts),
        "environment": tables.environment(facts),
        "job": facts.job_text,
    }


def _samples(facts: RunFacts) -> list[dict[str, Any]]:
    """A question each, with what the data answers and what the model answered by step."""
    found: dict[str, dict[str, Any]] = {}
    for line in facts.samples:
        question = line.get("question") or line.get("prompt")
        if isinstance(question, str) and isinstance(line.get("answer"), str):
            entry = found.setdefault(question, {"question": question, "expected": line.get("expected"), "answers": []})
            entry["answers"].append((line.get("step"), line["answer"]))
    if not found:
        sample = facts.seen.outcome.get("sample") or facts.seen.view.sample
        if isinstance(sample, dict) and isinstance(sample.get("question"), str):
            step = max(facts.history.steps, default=None)
            found[""] = {**sample, "answers": [(step, str(sample.get("answer")))]}
    return list(found.values())[:_MAX_SAMPLES]
