"""What a person reads before a launch must be what the trainer then does."""

from __future__ import annotations

import pytest

from launcher.plan.gpus import CARDS
from trainer.model import attention
from trainer.run.attention_kernel import HOPPER, expected
from trainer.run.settings.model import ModelSpec


@pytest.mark.parametrize(
    ("device", "precision", "gpu", "told"),
    [
        ("cpu", "bf16", None, attention.described(attention.SEGMENTED, "auto", "cpu", "bf16")),
        ("cuda", "fp32", "L40S", attention.described(attention.SEGMENTED, "auto", "cuda", "fp32")),
        ("cuda", "bf16", "L40S", f"{attention.IN_WORDS[attention.VARLEN]}, or flash-attn where"),
        (
            "cuda",
            "bf16",
            "H100-80GB",
            f"{attention.IN_WORDS[attention.VARLEN]}, or FlashAttention 3 or flash-attn where",
        ),
    ],
)
def test_the_expected_kernel_is_named_as_the_log_names_it(
    device: str, precision: str, gpu: str | None, told: str
) -> None:
    assert told in expected(ModelSpec(base="x"), device, precision, gpu)


def test_what_was_asked_for_is_told() -> None:
    assert expected(ModelSpec(base="x", attention="sdpa"), "cuda", "bf16", None) == "attention kernel: sdpa, as asked"


def test_every_hopper_card_that_can_be_planned_is_known() -> None:
    assert {card.name.split("-")[0] for card in CARDS if card.name.startswith(("H", "GH"))} <= set(HOPPER)
