"""Shows prepared conversations as text in which trained and untrained passages are told apart. Decides no colours."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, TextIO

import numpy as np

from trainer.data.prepared import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def show(data: Prepared, tokenizer: PreTrainedTokenizerFast, count: int, out: TextIO) -> None:
    """Write the first `count` sequences of the training part, a JSON object a line: name, tokens, and its passages as
    [text, weight of its tokens as targets]."""
    for sequence in data.train[:count].tolist():
        ids, weights = data.token_ids(sequence), data.token_weights(sequence)
        cuts = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist(), len(ids)]
        passages = [
            (
                tokenizer.decode(
                    ids[start:end].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
                ),
                float(weights[start]),
            )
            for start, end in pairwise(cuts)
            if end > start
        ]
        record = {"name": data.name_of(sequence), "tokens": len(ids), "passages": passages}
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
