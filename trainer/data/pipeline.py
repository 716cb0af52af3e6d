"""What a worker does with a block of rows: parse, check, render, encode, cut to length. No files, no other blocks.

Owns the fate of a single row. Refuses to know what happens across rows (duplicates, sampling, the held-out part).
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.encode import Encoded, Encoder
from trainer.data.filters import Filter
from trainer.data.minhash import signature
from trainer.data.prepared import Sequences
from trainer.data.render import Rendered, Renderer
from trainer.data.told import Told
from trainer.run.formats.base import DatasetFormat
from trainer.run.formats.conversation import (
    BadRow,
    Conversation,
    Reason,
    check,
    without_empty_system,
    without_opening_answer,
    without_system,
)
from trainer.run.settings.data import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = Mapping[str, Any] | BadRow | None
"""A row of a dataset, or why there is none in this place; None for a blank line, which is nobody's row."""

ODD_ROWS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a format may raise over a row that nobody foresaw: it costs that row."""


@dataclass
class Fate:
    """What became of the rows of a block."""

    sequences: Sequences
    pieces: np.ndarray
    """int64: sequences of each conversation, in order; 0 where none is left of it."""
    hashes: np.ndarray
    """uint64 of each conversation's text."""
    signatures: np.ndarray | None
    """uint32 (conversations, permutations), for near-duplicates."""
    num_rows: int = 0
    """Lines or records, blank lines too: the number of the last one."""
    num_blank: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    """Conversations by what was left out of them."""
    bad: list[tuple[int, Reason, str]] = field(default_factory=list)
    """Row in the block (from 1), reason, detail."""
    num_filtered: int = 0
    over_long: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """Of each conversation: was it longer than a sequence?"""
    untrained: int = 0
    """Pieces or conversations left out because nothing in them is trained."""
    tools_in_system: int = 0
    """Conversations whose tools went into the system message, because the template does not write them."""
    told: Told = field(default_factory=Told)


class Pipeline:
    """Everything that a block needs, made once in a process."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, data: DataSpec, stops: list[int] | None = None) -> None:
        self._data = data
        self._renderer = Renderer(
            tokenizer,
            data.train_on_inputs,
            data.last_turn_only,
            reasoning=data.train_on_reasoning,
            unroll=data.unroll,
            stops=stops,
        )
        self._encoder = Encoder(tokenizer)

    def run(self, rows: Iterable[Row], shape: DatasetFormat, keep: Filter | None, drops_system: bool = False) -> Fate:
        rendered: list[Rendered] = []
        plain: list[bool] = []
        numbers: list[int] = []
        texts: list[int] = []
        self._renderer.told = Told()
        bad: list[tuple[int, Reason, str]] = []
        num_rows = num_blank = num_filtered = tools_in_system = 0
        changed = Counter[str]()
        for num_rows, row in enumerate(rows, 1):
            if row is None:
                num_blank += 1
                continue
            try:
                if isinstance(row, BadRow):
                    raise row
                if keep is not None and not keep(row):
                    num_filtered += 1
                    continue
                conversation = parsed(row, shape, drops_system)
                written = self._rendered(conversation)
            except BadRow as error:
                bad.append((num_rows, error.reason, error.detail))
                continue
            rendered += written
            plain += [conversation.text is not None] * len(written)
            texts.append(len(written))
            numbers.append(num_rows)
            changed.update(conversation.changes)
            tools_in_system += self._renderer.moves_tools(conversation)
        fate = self._cut(self._encoder.encode(rendered, plain), np.array(numbers, np.int64), np.array(texts, np.int64))
        wholes = [rendered[end - 1] for end in itertools.accumulate(texts)]
        fate.hashes = np.array([_hash(item) for item in wholes], np.uint64)
        if self._data.deduplicate == "near":
            fate.signatures = signature([item.text for item in wholes])
        fate.num_rows, fate.bad, fate.num_filtered = num_rows, bad, num_filtered
        fate.tools_in_system, fate.num_blank, fate.changed = tools_in_system, num_blank, changed
        fate.told = self._renderer.told
        return fate

    def _rendered(self, conversation: Conversation) -> list[Rendered]:
        """The conversation as text, the whole last. What the assistant says before anyone asked goes where the template
        cannot write it."""
        try:
            rendered = self._renderer.render_all(conversation)
        except BadRow as error:
            if error.reason is not Reason.TEMPLATE or not without_opening_answer(conversation):
                raise
            check(conversation)
            rendered = self._renderer.render_all(conversation)
        except ODD_ROWS as error:
            raise BadRow(Reason.TEMPLATE, f"{type(error).__name__}: {error}") from error
        try:
            rendered[-1].text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow(
                Reason.UNDECODABLE, "the text holds half a character (a lone surrogate), or bytes that are not UTF-8"
            ) from error
        return rendered

    def _cut(self, encoded: Encoded, rows: np.ndarray, texts: np.ndarray) -> Fate:
        """Apply `over_long`; leave out what has nothing to train. `rows` and `texts` (rendered texts) are of each
        conversation."""
        limit, policy = self._data.sequence_length, self._data.over_long
        over_long = encoded.lengths > limit
        tokens, weights = encoded.tokens, encoded.weights
        starts = np.cumsum(encoded.lengths) - encoded.lengths
        conversation = np.repeat(np.arange(len(texts)), texts)
        lengths, owner = encoded.lengths, np.arange(len(encoded.lengths))
        if policy == "drop":
            keep = ~over_long
            starts, lengths, owner = starts[keep], lengths[keep], owner[keep]
        elif policy == "truncate":
            lengths = np.minimum(lengths, limit)
        elif over_long.any():
            pieces = -(-lengths // limit)
            owner = np.repeat(owner, pieces)
            number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
            lengths = np.minimum(encoded.lengths[owner] - number * limit, limit)
            starts = starts[owner] + number * limit
            weights[starts[number > 0]] = 0.0  # the first token of a piece is nobody's target
        sums = _sums(weights.astype(np.float64), starts, lengths)
        trained = _sums((weights > 0).astype(np.int64), starts, lengths)
        useful = trained > 0
        untrained = int(len(useful) - useful.sum())
        starts, lengths, owner = starts[useful], lengths[useful], conversation[owner[useful]]
        chosen = _ranges(starts, lengths)
        whole = len(chosen) == len(tokens)
        sequences = Sequences(
            tokens=tokens if whole else tokens[chosen],
            weights=weights if whole else weights[chosen],
            lengths=lengths,
            weight_sum=sums[useful],
            trained=trained[useful],
            rows=rows[owner],
        )
        return Fate(
            sequences=sequences,
            pieces=np.bincount(owner, minlength=len(texts)).astype(np.int64),
            hashes=np.zeros(0, np.uint64),
            signatures=None,
            over_long=np.bincount(conversation[over_long], minlength=len(texts)) > 0,
            untrained=untrained,
        )


def parsed(row: Mapping[str, Any], shape: DatasetFormat, drops_system: bool = False) -> Conversation:
    """The row's conversation, fit to be learned from. Raises BadRow, whatever the row holds."""
    try:
        conversation = shape.parse(row)
        without_empty_system(conversation)
        if drops_system:
            without_system(conversation)
        check(conversation)
    except ODD_ROWS as error:
        raise BadRow(Reason.NOT_TEXT, f"not of the shape '{shape.name}' ({type(error).__name__}: {error})") from error
    return conversation


def _hash(item: Rendered) -> int:
    """Of the text alone: the same words with another weight are the same conversation."""
    return int.from_bytes(hashlib.blake2b(item.text.encode("utf-8"), digest_size=8).digest(), "little")


def _sums(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    total = np.zeros(len(values) + 1, values.dtype)
    np.cumsum(values, out=total[1:])
    found: np.ndarray = total[starts + lengths] - total[starts]
    return found


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices of all [start, start + length), one behind another."""
    found: np.ndarray = np.arange(int(lengths.sum())) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return found
