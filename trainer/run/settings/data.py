"""`data:` of a job: the conversations and what is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.run.settings.base import Fraction, PositiveInt, SpecModel


class SourceSpec(SpecModel):
    path: Annotated[str, Field(min_length=1)]
    """A file (.jsonl, .json, .parquet, .arrow, .csv, .txt, also .gz and .zst), a folder, a glob, hf://owner/name, s3:// or gs://."""
    format: str | None = None
    """Format name (`dolphin data --formats` lists them); detected from the columns where not given."""
    fields: dict[str, str] | None = None
    """Column names of one's own, as role: column, for example {prompt: question, response: answer, system: preamble}."""
    split: str = "train"
    """Split of a hub dataset, or of a folder whose files say theirs (train-00000-of-00002.parquet, test.jsonl)."""
    subset: str | None = None
    """Configuration name of a hub dataset, or of a folder cloned from it."""
    files: tuple[str, ...] = ()
    """Files of a hub dataset to read, as paths or patterns in its repository (`data/part-*.jsonl`); where none are named, those of its configuration."""
    field: str | None = None
    """Key under which a JSON file holds its rows, where it has several: {"data": [...], "notes": [...]}."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Take this multiple of the source: 0.5 a seeded half, 2 every conversation twice."""
    samples: PositiveInt | None = None
    """Take this many conversations, chosen by the shuffle seed."""
    drop_system: bool = False
    """Leave out the system message of every conversation."""
    filter: str | None = None
    """Keep a row where this expression is true, for example `score > 4 and source == "textbook"`."""
    shuffle_seed: int | None = None
    """Seed for choosing `samples` or `weight`; train.seed where not given."""


class ValidationSpec(SpecModel):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$")]
    """Name of the set, in metrics and the card: lower-case letters, digits, hyphens and underscores."""
    path: Annotated[str, Field(min_length=1)] | None = None
    """Where its conversations come from, as in `sources`; held out of the sources where not given."""
    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Take this share of the conversations, of `path` or of the sources, chosen by train.seed."""
    count: PositiveInt | None = None
    """Take this many conversations instead of a share; neither takes all of `path`."""
    format: str | None = None
    """Format name; detected from the columns where not given."""
    fields: dict[str, str] | None = None
    """Column names of one's own, as role: column."""
    split: str = "validation"
    """Split of a hub dataset, or of a folder whose files say theirs."""
    subset: str | None = None
    """Configuration name of a hub dataset, or of a folder cloned from it."""
    field: str | None = None
    """Key under which a JSON file holds its rows, where it has several."""
    filter: str | None = None
    """Keep a row where this expression is true."""

    @property
    def source(self) -> SourceSpec | None:
        """Its rows, read as a source's; None where it is held out of the sources."""
        if self.path is None:
            return None
        return SourceSpec(
            path=self.path, format=self.format, fields=self.fields, split=self.split, subset=self.subset,
            field=self.field, filter=self.filter,
        )  # fmt: skip


HELD_OUT = "held-out"
"""Name of the one validation set of a job that states none by name."""


class DataSpec(SpecModel):
    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]
    """Where the conversations come from, in order."""
    validation_fraction: Fraction = 0.01
    """Share of the conversations held out of training, chosen by train.seed; 0 holds out none."""
    validation_count: PositiveInt | None = None
    """Hold out this many conversations instead of a share."""
    validation: Annotated[tuple[ValidationSpec, ...], Field(min_length=1)] | None = None
    """Validation sets by name, each with its own loss, in place of validation_fraction; the first one's is eval_loss. No conversation is in two of them, or in one and in training."""
    sequence_length: PositiveInt = 2048
    """Tokens in a packed sequence."""
    packing: bool = True
    """Put several whole conversations into a sequence; none of them sees another."""
    train_on_inputs: bool = False
    """Train on every token, not on the assistant's turns alone."""
    last_turn_only: bool = False
    """Train on the last assistant turn of each conversation only."""
    train_on_reasoning: bool | Literal["last"] = True
    """Train on thoughts (reasoning_content, <think>) that the chat template writes: `true` all, `last` those of the last answer only, `false` none."""
    unroll: bool = False
    """Where the chat template drops an answer's thoughts once others follow, train that answer with them in a sequence of its own."""
    over_long: Literal["drop", "truncate", "split"] = "drop"
    """What to do with a conversation longer than sequence_length; it is counted in the data report either way."""
    deduplicate: Literal["none", "exact", "near"] = "none"
    """Drop repeated conversations across all sources: `exact` by content, `near` by MinHash similarity too."""
    max_bad_fraction: Fraction = 0.01
    """Stop, before a GPU is paid for, where more than this share of the rows cannot be used."""
    workers: PositiveInt | None = None
    """Processes that prepare the data; the number of cores where not given."""

    @property
    def validation_sets(self) -> tuple[ValidationSpec, ...]:
        """Those by name; else the one that `validation_count` or `validation_fraction` hold out, if any."""
        if self.validation is not None:
            return self.validation
        if self.validation_count is not None:
            return (ValidationSpec(name=HELD_OUT, count=self.validation_count),)
        return (ValidationSpec(name=HELD_OUT, fraction=self.validation_fraction),) if self.validation_fraction else ()

    @property
    def holds_out(self) -> bool:
        """Whether there is anything to evaluate on."""
        return bool(self.validation_sets)

    @property
    def inputs(self) -> list[tuple[tuple[str | int, ...], SourceSpec]]:
        """Everything that rows are read from, behind the key that names it: the sources, then files of validation sets."""
        found: list[tuple[tuple[str | int, ...], SourceSpec]] = [
            (("data", "sources", index), source) for index, source in enumerate(self.sources)
        ]
        for index, entry in enumerate(self.validation or ()):
            if entry.source is not None:
                found.append((("data", "validation", index), entry.source))
        return found
