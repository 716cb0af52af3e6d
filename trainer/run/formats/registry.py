"""The registry of dataset formats, and the choice of one for a source."""

from __future__ import annotations

from collections.abc import Collection

from trainer.run.exits import BadInput
from trainer.run.formats.base import DatasetFormat
from trainer.run.formats.pairs import PAIRS, AlpacaFormat, TextFormat, chosen_fields
from trainer.run.formats.segments import SegmentsFormat
from trainer.run.formats.turns import MESSAGES, SHAREGPT, SHAREGPT_SINGULAR
from trainer.run.settings.data import SourceSpec

FORMATS: tuple[DatasetFormat, ...] = (
    SHAREGPT, MESSAGES, SHAREGPT_SINGULAR, AlpacaFormat(), *PAIRS, SegmentsFormat(), TextFormat(),
)  # fmt: skip
"""In the order of detection: a row is taken for the first shape that its columns fit."""


def choose(source: SourceSpec, columns: Collection[str], where: str) -> DatasetFormat:
    """The format of a source whose rows have `columns`. Raises BadInput; `where` names the source in it."""
    if source.fields is not None:
        if source.format is not None:
            raise BadInput(f"{where}: `format` contradicts `fields`: both say where the turns are; remove one")
        try:
            chosen = chosen_fields(source.fields)
        except KeyError as error:
            raise BadInput(f"{where}: {error.args[0]}") from error
        if not chosen.detect(columns):
            raise BadInput(f"{where}: `fields` names {chosen.columns}, but the columns are {_listed(columns)}")
        return chosen
    if source.format is not None:
        return named(source.format, where)
    for entry in FORMATS:
        if entry.detect(columns):
            return entry
    raise BadInput(
        f"{where}: no format has the columns {_listed(columns)}; name them, for example "
        "`fields: {prompt: ..., response: ...}` (`dolphin data --formats` lists the formats)"
    )


def named(name: str, where: str) -> DatasetFormat:
    for entry in FORMATS:
        if entry.name == name:
            return entry
    raise BadInput(f"{where}: there is no format '{name}'; there are {', '.join(entry.name for entry in FORMATS)}")


def _listed(columns: Collection[str]) -> str:
    return ", ".join(sorted(columns)) or "(none)"
