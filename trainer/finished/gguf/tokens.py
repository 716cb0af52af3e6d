"""A tokenizer as GGUF holds it: its entries with their kinds, how it cuts text, and what ends an answer.

Two kinds are written: byte-level BPE ("gpt2", with merges and the name of its way to cut text) and SentencePiece's BPE ("llama", with
scores). The way to cut text is known by its regular expressions in tokenizer.json, never guessed from a model's name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from trainer.run.exits import BadInput

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""tokenizer.ggml.token_type."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
CUTS = {
    _CONTRACTIONS + "|" + _WORDS + r"|\p{N}{1,3}" + _REST: ("llama-bpe", "dbrx"),
    _CONTRACTIONS + "|" + _WORDS + r"|\p{N}" + _REST: (None, "qwen2"),
    f"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+":
        ("tekken", None),
}  # fmt: skip
"""By the expression that cuts: tokenizer.ggml.pre of a tokenizer that takes a whole word before its merges, and of one that does not."""
GPT2_CUT, DIGITS_CUT = "gpt-2", "smollm"
"""GPT-2's own expression, which the ByteLevel step has built in; the same behind a step that cuts digits apart."""
PIECE_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is written of a tokenizer."""

    model: str
    pre: str
    entries: tuple[str, ...]
    """By id, filled up to the rows of the embedding."""
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    """Of a SentencePiece tokenizer; empty else."""
    ids: dict[str, int]
    """bos, eos, eot, unk, pad: those that there are."""
    adds_bos: bool
    adds_eos: bool
    adds_space: bool | None
    """A space before the text; None where the kind has none."""
    chat_template: str | None
    stops: tuple[str, ...]
    """Texts of all tokens that end an answer."""


def read(tokenizer: Any, num_rows: int, stop_ids: list[int]) -> Tokens:
    """Of a fast tokenizer. `num_rows` are those of the embedding, `stop_ids` what generation stops at.

    Raises BadInput for a tokenizer that GGUF cannot hold.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model["type"] != "BPE":
        raise BadInput(f"a tokenizer of the kind {model['type']} is not written as GGUF here; BPE is")
    if len(tokenizer) > num_rows:
        raise BadInput(
            f"the tokenizer has {len(tokenizer)} entries, the embedding {num_rows} rows: give every entry a row"
        )
    vocabulary = tokenizer.get_vocab()
    by_id = {number: text for text, number in vocabulary.items()}
    entries = tuple(by_id.get(number, f"[PAD{number}]") for number in range(num_rows))
    added = tokenizer.added_tokens_decoder
    is_pieces = bool(model.get("byte_fallback"))
    kinds = []
    for number, text in enumerate(entries):
        if number not in by_id:
            kinds.append(UNUSED)
        elif number == tokenizer.unk_token_id and is_pieces:
            kinds.append(UNKNOWN)
        elif number in added:
            kinds.append(CONTROL if added[number].special else USER_DEFINED)
        else:
            kinds.append(BYTE if is_pieces and re.fullmatch(r"<0x[0-9A-F]{2}>", text) else NORMAL)
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    probe = tokenizer("a").input_ids
    first, last = (probe[0], probe[-1]) if probe else (None, None)
    return Tokens(
        model="llama" if is_pieces else "gpt2",
        pre="default" if is_pieces else cut_of(backend),
        entries=entries, kinds=tuple(kinds), merges=() if is_pieces else merges,
        scores=_scores(entries, merges) if is_pieces else (),
        ids=_special_ids(tokenizer, stop_ids),
        adds_bos=first is not None and first == tokenizer.bos_token_id,
        adds_eos=last is not None and last == tokenizer.eos_token_id,
        adds_space=_adds_space(tokenizer) if is_pieces else None,
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        stops=tuple(entries[number] for number in stop_ids),
    )  # fmt: skip


def cut_of(backend: dict[str, Any]) -> str:
    """tokenizer.ggml.pre of a byte-level tokenizer.json. Raises BadInput for a way to cut text that has no name here."""
    steps = backend.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    expressions = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    kinds = [step.get("type") for step in steps]
    byte_level = next((step for step in steps if step.get("type") == "ByteLevel"), None)
    normalizer = backend.get("normalizer")
    if (
        byte_level is not None
        and not byte_level.get("add_prefix_space")
        and (normalizer or {}).get("type") in (None, "NFC")
    ):
        ignores_merges = bool(backend["model"].get("ignore_merges"))
        if kinds == ["Split", "ByteLevel"] and not byte_level.get("use_regex", True):
            name = CUTS.get(expressions[0], (None, None))[0 if ignores_merges else 1]
            if name is not None:
                return name
        if byte_level.get("use_regex", True) and not ignores_merges:
            if kinds == ["ByteLevel"]:
                return GPT2_CUT
            if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
                return DIGITS_CUT
    raise BadInput(
        f"the tokenizer cuts text in a way that has no name in GGUF here ({', '.join(map(str, kinds))}); llama.cpp's own converter may "
        "know it"
    )


def _scores(entries: tuple[str, ...], merges: tuple[str, ...]) -> tuple[float, ...]:
    """A reader merges the pair whose result scores highest: the rank of the merge that first makes an entry, negative."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return tuple(-float(ranks.get(entry, len(merges))) for entry in entries)


def _adds_space(tokenizer: Any) -> bool:
    pieces = tokenizer.tokenize("a")
    return bool(pieces) and pieces[0].startswith(PIECE_SPACE)


def _special_ids(tokenizer: Any, stop_ids: list[int]) -> dict[str, int]:
    names = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    found = {name: int(number) for name, number in names.items() if number is not None}
    others = [number for number in stop_ids if number != found.get("eos")]
    return found | ({"eot": others[0]} if others else {})
