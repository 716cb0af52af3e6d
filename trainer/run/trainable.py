"""Can this base be trained, and what holds of its family: from the contents of config.json alone.

One answer for validate, plan, launch and the trainer. Refuses to know torch, and to guess: what only the model's own code can
tell (does it keep packed conversations apart?) the self-test at load tells.
"""

from __future__ import annotations

from typing import Any

ENCODERS = (
    "albert", "bert", "big_bird", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "megatron-bert", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert",
    "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Families that see the tokens behind as well as those before."""

DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "attn_dropout")
"""Keys that families have for the dropout of attention weights."""


def refusal(config: dict[str, Any]) -> str | None:
    """Why a base with this configuration cannot be trained, and what to do; None where nothing speaks against it."""
    family = config.get("model_type")
    quantised = config.get("quantization_config") or _text(config).get("quantization_config")
    if isinstance(quantised, dict):
        return (
            f"its weights are quantised ({_kind(quantised)}), and full fine-tuning updates whole weights: "
            "give the unquantised base (bf16 or fp32)"
        )
    if not isinstance(family, str):
        return "its config.json names no model_type, so that nothing can tell what it is; fetch the model again"
    if config.get("is_encoder_decoder") is True:
        return f"a {family} reads with one half and writes with the other; dolphin trains causal language models"
    if family in ENCODERS:
        return f"a {family} sees the tokens behind each token too; dolphin trains causal language models"
    return None


def rules(config: dict[str, Any], attention_dropout: float | None = None) -> list[str]:
    """What applies to this family, a line each: which part is trained, attention, head, logits, experts."""
    text = _text(config)
    lines = []
    if text is not config:
        lines.append("language part: alone is trained; what sees or hears stays as it is")
    attention = _attention(text)
    dropout = next((text[key] for key in DROPOUTS if text.get(key)), 0.0)
    dropout = dropout if attention_dropout is None else attention_dropout
    lines.append(f"attention: {attention}" + (f", dropout {dropout:g} in training" if dropout else ""))
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    if tied is not None:
        told = "tied to the input embedding: one matrix, trained as one" if tied else "a matrix of its own"
        lines.append(f"head: {told}")
    if cap := text.get("final_logit_softcapping"):
        lines.append(f"logits: soft-capped at {cap:g}, in the loss too")
    scales = [
        text[key] for key in ("logit_scale", "logits_scaling", "lm_head_multiplier") if text.get(key) not in (None, 1)
    ]
    if scales:
        lines.append(f"logits: scaled ({scales[0]:g}), in the loss too")
    experts = next((text[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if text.get(key)), 0)
    if isinstance(experts, int) and experts > 1:
        chosen = text.get("num_experts_per_tok") or text.get("num_experts_per_token")
        lines.append(
            f"experts: {experts} a layer"
            + (f", {chosen} for a token" if chosen else "")
            + "; routers in fp32, as the run's log says"
        )
    return lines


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The language part of a multimodal model's configuration; of any other, the whole."""
    for key in ("text_config", "llm_config", "language_config"):
        part = config.get(key)
        if isinstance(part, dict):
            return part
    return config


def _attention(text: dict[str, Any]) -> str:
    kinds = text.get("layer_types") or text.get("layers_block_type")
    window = text.get("sliding_window")
    if text.get("use_sliding_window") is False:
        window = None
    if isinstance(kinds, list) and len(set(kinds)) > 1:
        counted = ", ".join(f"{kinds.count(kind)} {str(kind).replace('_', ' ')}" for kind in dict.fromkeys(kinds))
        told = f"layers of {len(set(kinds))} kinds ({counted})"
    else:
        told = "local" if window else "full"
    if isinstance(window, int) and not isinstance(window, bool):
        told += f", a window of {window:,} tokens"
    cap = text.get("attn_logit_softcapping")
    return told + (f", scores soft-capped at {cap:g}" if cap else "")


def _kind(quantised: dict[str, Any]) -> str:
    method = str(quantised.get("quant_method") or "quantization_config")
    bits = 4 if quantised.get("load_in_4bit") else 8 if quantised.get("load_in_8bit") else quantised.get("bits")
    return f"{method}, {bits} bits" if bits else method
