"""data_report.json, as whoever reads it needs it: what of a source's rows was left out. No torch; `trainer.data.report` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REASONS = (
    "filtered", "over_long", "nothing_trained", "duplicates", "near_duplicates", "unsampled", "copies_of_held_out",
)  # fmt: skip
"""Counts of a source by why conversations were left out, beside the rows that are `bad`."""


def left_out(source: Mapping[str, Any]) -> int:
    """How many, of one entry of `sources`; a count that is missing or no number is none."""
    bad = source.get("bad")
    counts = [source.get(name) for name in REASONS] + list(bad.values() if isinstance(bad, dict) else ())
    return sum(count for count in counts if isinstance(count, int))
