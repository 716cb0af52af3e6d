"""Rows of the page's tables: how it went, planned against actual, attempts, data, settings that differ. Text only, no HTML."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.follow.history import label_of, number
from launcher.follow.report.facts import RunFacts
from launcher.follow.status import price_text, when, with_detail
from launcher.runs.states import RunState, is_over
from launcher.units import count, gigabytes, seconds, size
from trainer.run.data_report import left_out


@dataclass(frozen=True, slots=True)
class Table:
    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    num_text_columns: int = 1
    """Columns from the left that are words; the others are numbers, to be aligned by their ends."""


def headline(facts: RunFacts) -> list[tuple[str, str]]:
    """Label and value of the few numbers that are read first."""
    seen, history = facts.seen, facts.history
    view, total = seen.view, history.total_steps
    found = [("state", seen.status.state.value)]
    step = max(history.steps, default=view.step)
    if step is not None:
        found.append(("steps", f"{step:,} of {total:,}" if total else f"{step:,}"))
    losses = history.series("loss")
    if losses:
        found.append(("training loss", f"{losses[-1][1]:.4f}"))
    validation = history.evaluated("eval_loss")
    if validation:
        found.append(("validation loss", f"{validation[-1][1]:.4f}"))
    speed = [value for _, value in history.series("tokens_per_second") if math.isfinite(value)]
    if speed:
        found.append(("tokens a second", count(statistics.median_high(speed))))
    spent = duration_s(facts)
    if spent is not None:
        found.append(("time", seconds(spent)))
    if seen.status.price_usd_so_far:
        found.append(("price", f"${seen.status.price_usd_so_far:,.2f}"))
    if len(history.attempts) > 1:
        found.append(("attempts", str(len(history.attempts))))
    return found


def duration_s(facts: RunFacts) -> float | None:
    start, end = facts.history.started_at, facts.history.ended_at
    return None if start is None or end is None else end - start


def notes(facts: RunFacts) -> list[str]:
    """What a reader must know before the curves: how it stands, what went wrong, what was left out."""
    seen, history = facts.seen, facts.history
    found = []
    if seen.status.state is not RunState.SUCCEEDED:
        found.append(with_detail(seen.status))
    if not history.steps and not is_over(seen.status.state):
        found.append("no step was made yet: curves appear with the first ones")
    if broken := history.not_finite():
        found.append(f"the loss is no finite number at {len(broken):,} steps, first at step {broken[0]:,}")
    found += [f"checkpoint refused: {why}" for why in history.refused]
    warnings = facts.data_report.get("warnings")
    found += [str(warning) for warning in warnings] if isinstance(warnings, list) else []
    return found


def planned(facts: RunFacts) -> Table | None:
    """Planned against actual; None where no plan was kept."""
    plan = facts.plan
    if not plan:
        return None
    row, machine, cost = _first(plan.get("rows")), _first(plan.get("machines")), plan.get("cost")
    hours = number((row.get("hours") or {}).get("mean"))
    memory = ((machine.get("chosen") or {}).get("memory") or {}).get("parts") or {}
    planned_bytes = sum(value for value in memory.values() if isinstance(value, int | float)) or None
    peaks = [value for _, value in facts.history.series("gpu_memory_bytes")]
    steps = [value for _, value in facts.history.series("seconds") if math.isfinite(value)]
    usd = number(cost.get("expected")) if isinstance(cost, dict) else None
    spent = duration_s(facts)
    total = number((plan.get("steps") or {}).get("total"))
    lines = [
        _against("steps", total, facts.history.total_steps, lambda value: f"{value:,.0f}"),
        _against("seconds a step", number(machine.get("step_s")), statistics.median_high(steps) if steps else None, lambda v: f"{v:.2f}"),
        _against("hours", hours, None if spent is None else spent / 3600, lambda value: f"{value:.2f}"),
        _against("GPU memory", planned_bytes if peaks else None, max(peaks, default=None), gigabytes),
        _against("price", usd, facts.seen.status.price_usd_so_far, lambda value: f"${value:,.2f}"),
    ]  # fmt: skip
    rows = [line for line in lines if line is not None]
    return Table(("", "planned", "actual", "actual / planned"), rows) if rows else None


def _against(label: str, before: float | None, after: float | None, words: Any) -> list[str] | None:
    if before is None and after is None:
        return None
    ratio = f"{after / before:.2f}" if before and after is not None else ""
    return [label, "-" if before is None else words(before), "-" if after is None else words(after), ratio]


def attempts(facts: RunFacts) -> Table | None:
    rows = [
        [str(one.number), when(one.started_at), one.ranks or "-", _span(one.resumed_step, one.reached_step),
         one.end or "-", str(len(one.saves)), seconds(one.ended_at - one.started_at)]
        for one in facts.history.attempts
    ]  # fmt: skip
    return Table(("attempt", "started", "on", "steps", "ended", "saves", "time"), rows, 5) if rows else None


def _span(first: int | None, last: int | None) -> str:
    return "none" if last is None else f"{(first or 0) + 1:,} to {last:,}"


def interruptions(facts: RunFacts) -> Table | None:
    """What each end of an attempt cost until the run was past it again."""
    rows = [
        [f"after attempt {one.attempt}", one.why, "-" if one.step is None else f"{one.step:,}",
         "-" if one.lost_steps is None else f"{one.lost_steps:,}",
         "-" if one.seconds is None else seconds(one.seconds), "-" if one.usd is None else f"${one.usd:,.2f}"]
        for one in facts.interruptions
    ]  # fmt: skip
    return (
        Table(("interruption", "why", "at step", "steps lost", "time lost", "paid for it"), rows, 2) if rows else None
    )


def nodes(facts: RunFacts) -> Table | None:
    found = facts.seen.status.attempts
    rows = [
        [one.node or "-", one.infra or "-", when(one.started_at),
         seconds(one.ended_at - one.started_at) if one.ended_at else "now",
         "-" if one.price_usd_per_hour is None else f"${one.price_usd_per_hour:.2f}"]
        for one in found
    ]  # fmt: skip
    return Table(("node", "where", "from", "time", "price an hour"), rows, 3) if rows else None


def evaluations(facts: RunFacts) -> Table | None:
    history = facts.history
    names = history.evaluation_names()
    rows = []
    for step in sorted(history.evaluations):
        line = history.evaluations[step]
        values = [number(line.get(name)) for name in names]
        epoch = number(line.get("epoch"))
        rows.append(
            [f"{step:,}", "-" if epoch is None else f"{epoch:.2f}", *("-" if v is None else f"{v:.4f}" for v in values)]
        )
    return Table(("step", "epoch", *map(label_of, names)), rows, 0) if rows else None


def benchmarks(facts: RunFacts) -> Table | None:
    """What the finished model was asked by `evaluate.tasks` or `dolphin eval`, with standard errors, beside its base."""
    found = facts.results.get("rows")
    given = [row for row in (found if isinstance(found, list) else []) if isinstance(row, dict)]
    has_base = any(number(row.get("base_value")) is not None for row in given)
    rows = [
        [
            str(row.get("alias") or row.get("task")),
            f"{row.get('metric')} {'↑' if row.get('higher_is_better') else '↓'}",
            *(
                _with_error(row.get(f"{of}value"), row.get(f"{of}stderr"))
                for of in (("", "base_") if has_base else ("",))
            ),
        ]
        for row in given
    ]
    return Table(("task", "metric", "tuned", *(["base"] if has_base else [])), rows, 2) if rows else None


def _with_error(value: Any, error: Any) -> str:
    known, spread = number(value), number(error)
    return "-" if known is None else f"{known:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def data(facts: RunFacts) -> Table | None:
    sources = facts.data_report.get("sources")
    rows = [
        [str(source.get("path")), str(source.get("format") or "-"),
         *(f"{source.get(name) or 0:,}" for name in ("rows", "train_conversations", "validation_conversations")),
         f"{left_out(source):,}", count(source.get("tokens")), count(source.get("trained_tokens"))]
        for source in (sources if isinstance(sources, list) else []) if isinstance(source, dict)
    ]  # fmt: skip
    head = ("source", "format", "rows", "trained on", "held out", "left out", "tokens", "of them trained")
    return Table(head, rows, 2) if rows else None


def environment(facts: RunFacts) -> list[tuple[str, str]]:
    record, plan = facts.record, facts.history.plan
    found = [("run", record.run_id), ("on", record.backend), ("started", when(record.created_at))]
    if facts.seen.status.node:
        found.append(("node", facts.seen.status.node))
    if facts.history.attempts and facts.history.attempts[-1].ranks:
        found.append(("ranks", facts.history.attempts[-1].ranks))
    for name, label in (("parameters", "parameters"), ("trained_parameters", "of them trained"), ("conversations", "conversations"), ("tokens", "tokens an epoch")):  # fmt: skip
        if number(plan.get(name)) is not None:
            found.append((label, f"{plan[name]:,}"))
    saves = [save for attempt in facts.history.attempts for save in attempt.saves]
    if saves:
        found.append(("a checkpoint", size(saves[-1].size_bytes)))
    if price := price_text(facts.seen.status):
        found.append(("price", price))
    return [*found, ("dolphin", record.launcher_version)]


def differing(runs: Sequence[RunFacts]) -> Table | None:
    """Settings in which runs are not alike, a column a run."""
    settings = [facts.settings for facts in runs]
    keys = sorted({key for one in settings for key in one})
    rows = [
        [key, *(_shown(one.get(key)) for one in settings)]
        for key in keys
        if len({_shown(one.get(key)) for one in settings}) > 1
    ]
    return Table(("setting", *(facts.record.run_id for facts in runs)), rows, 1 + len(runs)) if rows else None


def side_by_side(runs: Sequence[RunFacts]) -> Table:
    """How runs went, a column a run."""
    lists = [dict(headline(facts)) for facts in runs]
    labels = list(dict.fromkeys(label for one in lists for label in one))
    rows = [[label, *(one.get(label, "-") for one in lists)] for label in labels]
    return Table(("", *(facts.record.run_id for facts in runs)), rows, 1)


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _first(rows: Any) -> dict[str, Any]:
    return rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
