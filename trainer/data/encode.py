"""Turns texts with weighted character spans into token ids with a weight each, many texts at a time.

Owns the step from characters to tokens. Refuses to know conversations, templates and files. A token has the weight of a
span that it shares a character with, but an added token only of one that it begins in.

Asking the tokenizers library for offsets costs a quarter of its time. Where every token stands for a known number of
bytes (byte-level vocabularies, which is nearly all of today's) the offsets follow from the ids: the end of a token is the
sum of the bytes up to it. Each text is checked (its tokens' bytes must add up to its own); one that fails is encoded with
the library's offsets instead.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.render import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(slots=True)
class Encoded:
    """Texts as tokens, one text behind another."""

    tokens: np.ndarray
    """uint32."""
    weights: np.ndarray
    """float32 a token; the first token of a text is nobody's target and has 0."""
    lengths: np.ndarray
    """int64: tokens of each text."""


class Encoder:
    """A tokenizer, stripped to what encoding needs."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        from tokenizers import Tokenizer

        description = tokenizer.backend_tokenizer.to_str()
        self._tokenizer = Tokenizer.from_str(description)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        bos = tokenizer.bos_token_id
        wrapped = tokenizer.backend_tokenizer.encode("", add_special_tokens=True).ids
        self._text_start = [bos] if bos is not None and wrapped[:1] == [bos] else []
        self._text_end: int = tokenizer.eos_token_id
        # The post-processor adds special tokens, which templates have written already, and trims offsets.
        self._tokenizer.post_processor = None
        self._token_bytes, self._needs_nfc = _byte_lengths(self._tokenizer, json.loads(description))
        added = [int(number) for number in tokenizer.added_tokens_decoder]
        self._is_added = np.zeros(max([len(tokenizer), *(number + 1 for number in added)]), bool)
        self._is_added[added] = True

    @property
    def knows_bytes(self) -> bool:
        """Whether offsets follow from the ids."""
        return self._token_bytes is not None

    def encode(self, rendered: list[Rendered], is_plain: list[bool]) -> Encoded:
        """Encode texts; a plain one (no chat) also gets the tokens that begin and end a document, never twice."""
        texts = [item.text for item in rendered]
        ids, starts, ends, bases, in_bytes = self._with_positions(texts)
        lengths = np.array([len(one) for one in ids], np.int64)
        tokens = np.concatenate(ids) if ids else np.zeros(0, np.uint32)
        weights = np.zeros(len(tokens), np.float32)
        self._weigh(rendered, tokens, weights, starts, ends, bases, in_bytes)
        if any(is_plain):
            tokens, weights, lengths = self._close_documents(tokens, weights, lengths, is_plain)
        first = np.cumsum(lengths) - lengths
        weights[first[lengths > 0]] = 0.0
        return Encoded(tokens, weights, lengths)

    def _with_positions(
        self, texts: list[str]
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray, list[bool]]:
        """Ids of each text; start and end of every token on one axis on which text i begins at `bases[i]`, measured in
        bytes or characters as `in_bytes[i]` says."""
        ids: list[np.ndarray]
        sizes = np.zeros(len(texts), np.int64)
        in_bytes = [False] * len(texts)
        spans: list[np.ndarray | None] = [None] * len(texts)
        if self._token_bytes is not None:
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ids = [np.array(one.ids, np.uint32) for one in encoded]
            del encoded
            for i, text in enumerate(texts):
                size = len(text) if text.isascii() else len(text.encode("utf-8"))
                if self._needs_nfc and not unicodedata.is_normalized("NFC", text):
                    continue
                ends = np.cumsum(self._token_bytes[ids[i]], dtype=np.int64)
                if (int(ends[-1]) if len(ends) else 0) == size:
                    in_bytes[i] = True
                    sizes[i] = size
                    spans[i] = ends
        else:
            ids = [np.zeros(0, np.uint32)] * len(texts)
        unknown = [i for i in range(len(texts)) if not in_bytes[i]]
        if unknown:
            for i, one in zip(
                unknown,
                self._tokenizer.encode_batch([texts[i] for i in unknown], add_special_tokens=False),
                strict=True,
            ):
                ids[i] = np.array(one.ids, np.uint32)
                spans[i] = np.array(one.offsets, np.int64).reshape(-1, 2)
                sizes[i] = len(texts[i])
        bases = np.cumsum(sizes + 1) - sizes - 1
        starts, ends_all = [], []
        for i, known in enumerate(spans):
            assert known is not None
            if in_bytes[i]:
                starts.append(np.concatenate(([0], known[:-1])) + bases[i] if len(known) else known)
                ends_all.append(known + bases[i])
            else:
                starts.append(known[:, 0] + bases[i])
                ends_all.append(known[:, 1] + bases[i])
        if not texts:
            return ids, np.zeros(0, np.int64), np.zeros(0, np.int64), bases, in_bytes
        return ids, np.concatenate(starts), np.concatenate(ends_all), bases, in_bytes

    def _weigh(
        self,
        rendered: list[Rendered],
        tokens: np.ndarray,
        weights: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        bases: np.ndarray,
        in_bytes: list[bool],
    ) -> None:
        """Many parameters: columns of the tokens of a whole batch, which are read side by side."""
        lows, highs, values = [], [], []
        for i, item in enumerate(rendered):
            base, text = int(bases[i]), item.text
            plain = not in_bytes[i] or text.isascii()
            for start, end, weight in item.spans:
                if end > start:
                    lows.append(base + (start if plain else len(text[:start].encode("utf-8"))))
                    highs.append(base + (end if plain else len(text[:end].encode("utf-8"))))
                    values.append(weight)
        # Offsets of the library may repeat (bytes of one character) but never go back, so both axes are sorted.
        low_ends = np.array(lows, np.int64)
        first = np.searchsorted(ends, low_ends, side="right")
        # A marker may swallow the white space behind it (Phi-3): one that begins before a span is still no part of it.
        at = np.minimum(first, max(0, len(starts) - 1))
        if len(starts):
            first = first + (self._is_added[tokens[at]] & (starts[at] < low_ends))
        last = np.searchsorted(starts, np.array(highs, np.int64), side="left")
        for low, high, value in zip(first.tolist(), last.tolist(), values, strict=True):
            weights[low:high] = value

    def _close_documents(
        self, tokens: np.ndarray, weights: np.ndarray, lengths: np.ndarray, is_plain: list[bool]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ends = np.cumsum(lengths)
        all_tokens, all_weights, all_lengths = [], [], []
        for i, plain in enumerate(is_plain):
            own, weight = tokens[ends[i] - lengths[i] : ends[i]], weights[ends[i] - lengths[i] : ends[i]]
            if plain:
                before = self._text_start if own[:1].tolist() != self._text_start else []
                after = [self._text_end] if own[-1:].tolist() != [self._text_end] else []
                own = np.concatenate((np.array(before, np.uint32), own, np.array(after, np.uint32)))
                weight = np.concatenate((np.zeros(len(before), np.float32), weight, np.ones(len(after), np.float32)))
            all_tokens.append(own)
            all_weights.append(weight)
            all_lengths.append(len(own))
        return np.concatenate(all_tokens), np.concatenate(all_weights), np.array(all_lengths, np.int64)


def _byte_lengths(tokenizer: Any, description: dict[str, Any]) -> tuple[np.ndarray | None, bool]:
    """Bytes that each token id stands for, and whether that holds for NFC text only; None where it is not known."""
    normalizer = description.get("normalizer")
    needs_nfc = normalizer == {"type": "NFC"}
    if (normalizer is not None and not needs_nfc) or description["model"].get("type") != "BPE":
        return None, False
    if not _keeps_bytes(description.get("pre_tokenizer")):
        return None, False
    alphabet = set(_byte_level_alphabet())
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    added = {entry["content"] for entry in description.get("added_tokens", ())}
    table = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for token, number in vocabulary.items():
        if token in added:
            table[number] = len(token.encode("utf-8"))
        elif alphabet.issuperset(token):
            table[number] = len(token)
        else:
            return None, False
    return table, needs_nfc


def _keeps_bytes(step: dict[str, Any] | None) -> bool:
    """Whether a pre-tokenizer only cuts text and writes it in the byte-level alphabet."""
    steps = step.get("pretokenizers", []) if step and step.get("type") == "Sequence" else [step] if step else []
    if not any(one.get("type") == "ByteLevel" for one in steps):
        return False
    for one in steps:
        kind = one.get("type")
        if kind == "ByteLevel" and one.get("add_prefix_space"):
            return False
        if kind == "Split" and one.get("behavior") == "Removed":
            return False
        if kind not in ("ByteLevel", "Split", "Digits"):
            return False
    return True


def _byte_level_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()
