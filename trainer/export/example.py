"""A conversation of the training data as the model read it, and what its answers end with: for the model card.

Read from the prepared data, not from what a template might do with made-up turns. Refuses to know weights.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainer.data.prepared import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 200
"""Of a conversation that is shown whole; of a longer one, the beginning and the end of the first answer are shown."""
NUM_TO_LOOK_AT = 500
CUT = " [...] "
MIN_SHARE_OF_ENDS = 0.5
"""Share of the answers that must end with the same token for it to be called their end."""


class Example(NamedTuple):
    text: str
    end: str | None
    """What most answers end with; None where they end with no token of their own."""


def of_run(run_dir: str | Path, tokenizer: PreTrainedTokenizerBase) -> Example | None:
    """The first training conversation that is short enough, or the beginning of the first; None where there is none."""
    data = Prepared.open(run_dir)
    looked_at = [int(sequence) for sequence in data.train[:NUM_TO_LOOK_AT]]
    if not looked_at:
        return None
    short = [sequence for sequence in looked_at if data.lengths(np.array([sequence]))[0] <= MAX_TOKENS]
    ids = data.token_ids((short or looked_at)[0])
    if short:
        text = _decoded(tokenizer, ids)
    else:
        text = _decoded(tokenizer, ids[: MAX_TOKENS // 2]) + CUT + _decoded(tokenizer, ids[-MAX_TOKENS // 2 :])
    return Example(text.strip("\n"), _end_of_answers(data, looked_at, tokenizer))


def _end_of_answers(data: Prepared, sequences: list[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    ends = Counter[int]()
    for sequence in sequences:
        ids, is_target = data.token_ids(sequence), data.token_weights(sequence) > 0
        last = np.flatnonzero(is_target & ~np.append(is_target[1:], False))
        ends.update(int(token) for token in ids[last])
    if not ends:
        return None
    token, count = ends.most_common(1)[0]
    if count < MIN_SHARE_OF_ENDS * sum(ends.values()) or token not in tokenizer.added_tokens_decoder:
        return None
    return str(tokenizer.added_tokens_decoder[token].content)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    found: str = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return found
