"""The data report: what became of every row of every source. Knows how to count and to write; decides nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.told import Told
from trainer.run.exits import BadInput
from trainer.run.formats.conversation import Reason
from trainer.run.run_folder import RunDir, write_atomic

MAX_LISTED = 10_000
"""Bad rows that are listed one by one; all are counted."""
EARLY_ROWS = 200
"""Rows of a source after which one that has not a single usable row stops the preparation."""


@dataclass
class SourceReport:
    """One source. Counts of conversations where not said otherwise; a row is one line or record."""

    path: str
    format: str
    validation_set: str | None = None
    """The set whose own files these are; None of a source of training."""
    rows: int = 0
    filtered: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    over_long: int = 0
    """Longer than a sequence: dropped, truncated or split as `over_long` says."""
    nothing_trained: int = 0
    """Conversations, or pieces of one, without a trained token."""
    tools_in_system: int = 0
    """Conversations whose tools were written into the system message, as the chat template has no place for them."""
    changed: dict[str, int] = field(default_factory=dict)
    """Conversations by what was left out of them so that they can be used."""
    told: Told = field(default_factory=Told)
    """What is trained of what the assistants say, and what the chat template leaves out."""
    duplicates: int = 0
    near_duplicates: int = 0
    unsampled: int = 0
    copies_of_held_out: int = 0
    train_conversations: int = 0
    validation_conversations: int = 0
    tokens: int = 0
    """Of one pass over the training part."""
    trained_tokens: int = 0
    median_tokens: int = 0
    longest_tokens: int = 0

    def change(self, counts: Mapping[str, int]) -> None:
        for what, count in counts.items():
            self.changed[what] = self.changed.get(what, 0) + count


class Report:
    """Collects while rows are read; `finish` gives what data_report.json holds."""

    def __init__(self, sources: list[SourceReport], end_token: str) -> None:
        self.sources = sources
        self._end_token = end_token
        self._listed: list[dict[str, Any]] = []

    @property
    def told(self) -> Told:
        """Of all sources together."""
        whole = Told()
        for source in self.sources:
            whole.add(source.told)
        return whole

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    def left_out(self) -> str:
        """What became of the rows, for an error: `: 4 longer than data.sequence_length`."""
        counts = {
            "longer than data.sequence_length": sum(source.over_long for source in self.sources),
            "with nothing that is trained": sum(source.nothing_trained for source in self.sources),
            "filtered": sum(source.filtered for source in self.sources),
            "bad": sum(sum(source.bad.values()) for source in self.sources),
        }
        told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        return f": of {self.rows:,} rows {told}" if told else ""

    def count(
        self, source: SourceReport, file: str, first_row: int, rows: int, bad: list[tuple[int, Reason, str]]
    ) -> None:
        """Take in a block of rows. Raises BadInput where a source turns out to hold nothing usable."""
        source.rows += rows
        counts = Counter(source.bad)
        for row, reason, why in bad:
            counts[reason.value] += 1
            if len(self._listed) < MAX_LISTED:
                shown = why[:500].encode("utf-8", "backslashreplace").decode("utf-8")
                self._listed.append({"file": file, "line": first_row + row, "reason": reason.value, "why": shown})
        source.bad = dict(counts)
        if source.rows >= EARLY_ROWS and sum(counts.values()) == source.rows:
            example = _example(source.bad, self._listed)
            raise BadInput(f"{source.path}: none of the first {source.rows} rows can be used: {example}")

    def finish(self, **totals: Any) -> dict[str, Any]:
        bad = Counter[str]()
        for source in self.sources:
            bad.update(source.bad)
        return {
            "totals": {"rows": self.rows, "bad": dict(bad), **totals},
            "warnings": self._warnings(),
            "sources": [asdict(source) for source in self.sources],
            "bad_rows": self._listed,
            "bad_rows_not_listed": sum(bad.values()) - len(self._listed),
        }

    def _warnings(self) -> list[str]:
        told = [(source.path, source.told.warnings(self._end_token)) for source in self.sources]
        if len(told) == 1:
            return told[0][1]
        return [f"{path}: {warning}" for path, warnings in told for warning in warnings]


def bad_share_problem(finished: dict[str, Any], max_bad_fraction: float) -> str | None:
    """Why a run with this report must stop: more than `data.max_bad_fraction` of the rows are bad."""
    rows, bad = finished["totals"]["rows"], finished["totals"]["bad"]
    total = sum(bad.values())
    if total <= max_bad_fraction * rows:
        return None
    return (
        f"{total} of {rows} rows cannot be used, more than data.max_bad_fraction {max_bad_fraction:g}; "
        f"most often: {_example(bad, finished['bad_rows'])}; data_report.json lists them"
    )


def write_report(run_dir: str | Path, finished: dict[str, Any]) -> None:
    """data_report.json of the run folder."""
    text = json.dumps(finished, ensure_ascii=False, indent=1) + "\n"
    write_atomic(RunDir(run_dir).data_report, text)


def _example(bad: dict[str, int], listed: list[dict[str, Any]]) -> str:
    """The most frequent reason, with a place."""
    reason = max(bad, key=lambda name: bad[name])
    entry = next((entry for entry in listed if entry["reason"] == reason), None)
    if entry is None:
        return reason
    return f"{reason} ({bad[reason]} rows), for example {entry['file']}:{entry['line']}: {entry['why']}"


def describe_lengths(report: SourceReport, lengths: np.ndarray, trained: np.ndarray) -> None:
    """Fill in the tokens of what a source gives to training."""
    report.tokens = int(lengths.sum())
    report.trained_tokens = int(trained.sum())
    report.median_tokens = int(np.median(lengths)) if len(lengths) else 0
    report.longest_tokens = int(lengths.max()) if len(lengths) else 0
