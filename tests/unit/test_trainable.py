"""A base that cannot be trained must be refused while it costs nothing, and what holds of one must be said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.jobfile.model_checks import model_findings
from launcher.models.known import KNOWN_CONFIGS
from trainer.model.build import read_config
from trainer.run.exits import BadInput
from trainer.run.spec import TrainSpec
from trainer.run.trainable import refusal, rules

LLAMA = KNOWN_CONFIGS["llama-3.2-1b"]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**LLAMA, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes, 4 bits"),
    ({**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4 bits"),
    ({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
    ({"model_type": "bert"}, "sees the tokens behind"),
    ({"model_type": "bart", "is_encoder_decoder": True}, "causal language models"),
]


@pytest.mark.parametrize(("config", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_base_that_cannot_be_trained_is_refused_alike_by_validate_and_the_trainer(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = TrainSpec.model_validate(
        {"name": "x", "model": {"base": str(tmp_path)}, "data": {"sources": [{"path": "/d.jsonl"}]}}
    )
    [finding] = model_findings(spec)
    assert finding.where == ("model", "base")
    assert said in finding.message
    with pytest.raises(BadInput, match=said.split(",")[0]):
        read_config(spec.model)


def test_known_bases_are_trainable_and_their_rules_are_told() -> None:
    assert [name for name, config in KNOWN_CONFIGS.items() if refusal(config)] == []
    assert rules(LLAMA) == ["attention: full", "head: tied to the input embedding: one matrix, trained as one"]
    gemma = {
        "model_type": "gemma3", "text_config": {
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"], "sliding_window": 512,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention_dropout": 0.1,
        },
    }  # fmt: skip
    told = "\n".join(rules(gemma))
    for part in (
        "language part",
        "5 sliding attention, 1 full attention",
        "512 tokens",
        "at 50",
        "at 30",
        "dropout 0.1",
    ):
        assert part in told
    assert "dropout" not in "\n".join(rules(gemma, attention_dropout=0.0))
    assert "experts: 128 a layer, 8 for a token; routers in fp32, as the run's log says" in rules(
        {"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8}
    )
