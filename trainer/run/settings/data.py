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


class DataSpec(SpecModel):
    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]
    """Where the conversations come from, in order."""
    validation_fraction: Fraction = 0.01
    """Share of the conversations held out of training, chosen by train.seed; 0 holds out none."""
    validation_count: PositiveInt | None = None
    """Hold out this many conversations instead of a share."""
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
    def holds_out(self) -> bool:
        """Whether anything is held out; `validation_count` takes the place of the fraction."""
        return self.validation_count is not None or self.validation_fraction > 0
