"""The exported model stops where the base did, where the tokenizer ends, and where it was trained to: at all of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from trainer.export.model_folder import generation_config


@pytest.mark.parametrize(
    "base, own, trained, stops",
    [
        ([1, 106], 1, [1, 106], [1, 106]),
        (1, 1, [1, 4], [1, 4]),
        ([7], 2, [2], [2, 7]),
        (2, 2, [2], 2),
        (None, 3, [], 3),
    ],
)
def test_no_stop_token_is_lost_in_the_export(base: Any, own: int, trained: list[int], stops: Any) -> None:
    model: Any = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=base, temperature=0.5, do_sample=True))
    tokenizer: Any = SimpleNamespace(bos_token_id=0, eos_token_id=own, pad_token_id=9)
    config = generation_config(model, tokenizer, trained)
    assert config.eos_token_id == stops
    assert (config.temperature, config.pad_token_id) == (0.5, 9), "the base's sampling is kept"
