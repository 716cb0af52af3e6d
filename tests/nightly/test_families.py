"""A family that trains wrong, or exports what does not load, must be found by night, not by the person who pays for it."""

from __future__ import annotations

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.nightly import sweep

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
WANTED = (
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi3", "cohere",
    "granite", "gpt_oss", "olmo2", "deepseek_v3", "stablelm", "nemotron", "llama4_text", "glm4", "smollm3",
)  # fmt: skip
"""Families that must be trained packed."""


@pytest.fixture(scope="session")
def rows() -> dict[str, sweep.Row]:
    """Of every family; what they are is written to docs/models.md."""
    found = sweep.swept(FAMILIES, jobs=2)
    sweep.DOCUMENT.write_text(sweep.document(found), encoding="utf-8")
    return {row.family: row for row in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_as_alone_and_loaded_again_or_refused_with_a_reason(family, rows) -> None:
    row = rows[family]
    if row.outcome == "not built":
        pytest.skip(row.detail)
    assert row.outcome in ("packed", "alone", "refused"), row.detail
    assert row.reloaded == ("" if row.outcome == "refused" else "equal")
    assert row.detail


@pytest.mark.parametrize("family", WANTED)
def test_a_family_that_many_want_is_trained_packed(family, rows) -> None:
    assert rows[family].outcome == "packed", rows[family].detail
