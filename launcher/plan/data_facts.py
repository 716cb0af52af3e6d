"""How much data a job has, as far as the laptop knows: stated, prepared before, or estimated from the sizes of its files.

Owns where such facts come from and that an estimate is said to be one. Refuses to read conversations and to download.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.run.settings.data import DataSpec, ValidationSpec

BYTES_PER_TOKEN = 4.4
"""Of a JSON file with conversations: English text has about 4 characters a token, names of fields and quotes come on top."""
EXPANSION = {".gz": 3.5, ".zst": 3.8, ".parquet": 2.5}
"""Uncompressed bytes of conversations per byte of such a file."""
DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".gz", ".zst")
FILL = 0.99
"""Of a packed sequence's tokens that are no padding."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Of one epoch. None: not known."""

    basis: Literal["stated", "prepared", "estimate"]
    source: str
    """Where it comes from, for a person."""
    sequences: int
    """Packed sequences."""
    conversations: int | None = None
    tokens: int | None = None
    trained_tokens: int | None = None
    held_out: int | None = None
    """Packed sequences of all validation sets together."""

    @property
    def mean_length(self) -> float | None:
        """Tokens of a conversation."""
        return self.tokens / self.conversations if self.tokens and self.conversations else None

    @property
    def labelled_share(self) -> float:
        """Tokens with a loss among all; all of them where that is not known."""
        return self.trained_tokens / self.tokens if self.tokens and self.trained_tokens else 1.0


def stated(sequences: int) -> DataFacts:
    return DataFacts("stated", "as stated", sequences)


def from_report(path: Path, sequence_length: int) -> DataFacts | None:
    """From a data report that preparing the data left. None where it is not there or holds no totals."""
    try:
        record = json.loads(path.read_bytes())
        sources = record["sources"]
        conversations = sum(int(source["train_conversations"]) for source in sources)
        tokens = sum(int(source["tokens"]) for source in sources)
        trained = sum(int(source["trained_tokens"]) for source in sources)
        packed = int(record["totals"].get("packed_sequences") or 0)
        sets = record["totals"].get("validation")
        held_out = None if sets is None else sum(int(entry["packed_sequences"]) for entry in sets)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not tokens:
        return None
    packed = packed or max(1, round(tokens / (FILL * sequence_length)))
    return DataFacts("prepared", str(path), packed, conversations, tokens, trained, held_out)


def from_plan_event(event: dict[str, Any], source: str) -> DataFacts | None:
    """From the trainer's own plan of an earlier run over the same data."""
    try:
        return DataFacts(
            "prepared", source, int(event["sequences"]), int(event["conversations"]), int(event["tokens"]),
            int(event["trained_tokens"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def local_files(data: DataSpec) -> list[Path] | None:
    """Every file of the sources and of validation sets; None where one of them is not on this machine."""
    found = [_files(source.path) for _, source in data.inputs]
    return [file for files in found for file in files] if all(found) else None


def estimated(data: DataSpec, why: str = "") -> DataFacts | None:
    """From the sizes of local files; None where a source is not a local file, whose size nobody here knows. `why` nobody
    counted them."""
    tokens = 0.0
    for source in data.sources:
        if not _files(source.path):
            return None
        tokens += _tokens_of(source.path) * (source.weight or 1.0)
    tokens *= 1.0 - _share_held_out(data)  # what a number of conversations takes of it is not known from sizes
    sequences = max(1, round(tokens / (FILL * data.sequence_length)))
    return DataFacts(
        "estimate", f"the size of the files, at {BYTES_PER_TOKEN} bytes a token{f' ({why})' if why else ''}", sequences,
        tokens=round(tokens),
    )  # fmt: skip


def held_out_sequences(data: DataSpec, facts: DataFacts) -> float:
    """Sequences of one evaluation over all validation sets. Of a number of conversations among which none is counted: one
    sequence each, the most; of a set whose files are not on this machine nothing is known, and nothing counted."""
    if facts.held_out is not None:
        return float(facts.held_out)
    return sum(_sequences_of(entry, data, facts) for entry in data.validation_sets)


def _sequences_of(entry: ValidationSpec, data: DataSpec, facts: DataFacts) -> float:
    whole = facts.sequences / (1 - _share_held_out(data))
    if entry.path is not None:
        whole = _tokens_of(entry.path) / (FILL * data.sequence_length)
    elif entry.count is not None and facts.conversations:
        return facts.sequences * entry.count / facts.conversations
    if entry.count is not None:
        return float(entry.count)
    return whole * (entry.fraction or 1.0)


def _share_held_out(data: DataSpec) -> float:
    return min(0.99, sum(entry.fraction or 0.0 for entry in data.validation_sets if entry.path is None))


def _tokens_of(path: str) -> float:
    """About; 0 where no such file is on this machine."""
    return sum(file.stat().st_size * EXPANSION.get(file.suffix, 1.0) for file in _files(path)) / BYTES_PER_TOKEN


def _files(path: str) -> list[Path]:
    if "://" in path:
        return []
    root = Path(path)
    if root.is_dir():
        return [file for file in root.rglob("*") if file.suffix in DATA_SUFFIXES and file.is_file()]
    if root.is_file():
        return [root]
    base = Path(root.anchor) if root.is_absolute() else Path()
    pattern = str(root.relative_to(root.anchor)) if root.is_absolute() else path
    return [file for file in base.glob(pattern) if file.is_file()] if any(c in path for c in "*?[") else []
