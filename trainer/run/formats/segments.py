"""Rows that hold a document as segments, each with whether it is trained: a template of one's own, applied beforehand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trainer.run.formats.base import column
from trainer.run.formats.conversation import BadRow, Conversation, Reason, Segment


class SegmentsFormat:
    """segments: [{text, label}, ...], joined as they are: no chat template, and no token added at the beginning or the end."""

    name = "input-output"
    columns = "segments"

    def detect(self, columns: Collection[str]) -> bool:
        return "segments" in columns

    def parse(self, record: Mapping[str, Any]) -> Conversation:
        rows = column(record, "segments")
        if not isinstance(rows, list):
            raise BadRow(Reason.NOT_TEXT, f"column 'segments' is {type(rows).__name__}, not a list")
        return Conversation(segments=[_segment(row, number) for number, row in enumerate(rows, 1)])


def _segment(row: Any, number: int) -> Segment:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise BadRow(Reason.NOT_TEXT, f"segment {number} has no text")
    if not isinstance(row.get("label"), bool):
        raise BadRow(Reason.BAD_WEIGHT, f"segment {number}: label is {row.get('label')!r}, not true or false")
    return Segment(row["text"], row["label"])
