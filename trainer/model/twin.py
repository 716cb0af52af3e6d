"""A model's small twin: the same code and the same switches at a width of 64, with random weights, made in a tenth of a second.

What holds of how a family treats packed conversations, masks and logits holds of its twin, whatever the weights. Owns which
sizes of a configuration may shrink, and how far. Refuses to know what is tested on it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

VOCABULARY = 128
WINDOW = 8
"""Tokens that a twin's local attention reaches back: shorter than the test's conversations, so that it counts."""
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
MOST_LAYERS = 12
MOST_PARAMETERS = 60_000_000
"""A twin that is larger was not made small by the rules here."""

HEAD_SIZES = ("head_dim", "global_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim", "v_head_dim",
              "attention_head_dim", "swa_head_dim", "swa_v_head_dim")  # fmt: skip
"""Kept where a twin is to have the heads' real size."""
HIDDEN_SIZES, HEAD_COUNTS = (
    ("hidden_size", "n_embd", "d_model"),
    ("num_attention_heads", "n_head", "n_heads", "num_heads"),
)
HIDDEN, HEADS, HEAD_SIZE, EXPERTS, EXPERT_WIDTH = 64, 4, 16, 4, 32
SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "lru_width"), HIDDEN),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
                     "encoder_attention_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "global_head_dim", "qk_nope_head_dim", "v_head_dim", "attention_head_dim",
                     "index_head_dim", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim",
                     "mamba_d_state", "ssm_state_size", "state_size", "kv_lora_rank", "swa_head_dim", "swa_v_head_dim",
                     "hidden_size_per_layer_input"), HEAD_SIZE),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "rotary_dim", "rotary_ndims"), 8),
    "qk_rope_head_dim": HEAD_SIZE, "qk_head_dim": 2 * HEAD_SIZE, "q_lora_rank": 32, "o_lora_rank": 32, "index_n_heads": 2,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
                     "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), EXPERT_WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size",
                     "dense_intermediate_size", "intermediate_size_mlp", "block_ff_dim", "block_dim",
                     "mlp_hidden_size"), HIDDEN),
    **dict.fromkeys(("n_group", "num_group", "topk_group", "mamba_n_groups", "n_groups", "first_k_dense_replace", "mamba_expand", "expand",
                     "num_mem_blocks"), 1),
    **dict.fromkeys(("linear_num_heads", "linear_num_key_heads", "linear_num_value_heads", "mamba_n_heads", "mamba_num_heads",
                     "n_mamba_heads"), HEADS),
    **dict.fromkeys(("mamba_d_ssm", "mamba_intermediate"), HIDDEN),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window_size", "local_attention",
                     "window_size"), WINDOW),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
}  # fmt: skip
"""Number that replaces a whole number under this key; a key that is absent, None or a switch stays as it is."""
AT_MOST = ("first_k_dense_replace", "num_mem_blocks", "num_experts_per_tok", "num_experts_per_token")
"""Numbers that some families want small: never raised."""
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "num_global_key_value_heads")
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def make(
    config: PretrainedConfig, attention: str = "eager", *, has_real_heads: bool = False, **options: Any
) -> nn.Module | None:
    """A twin of what `config` describes, in fp32 on the CPU, in evaluation mode; None where no small one can be made.

    With `has_real_heads` its heads, four of them, have the size of the model's. The global random state is left as it was.
    """
    for shrink in (_by_rebuilding, _by_setting, _of_its_text):
        try:
            small = shrink(config, has_real_heads)
            with torch.device("meta"):
                sketch = AutoModelForCausalLM.from_config(small, **options)
            if sum(parameter.numel() for parameter in sketch.parameters()) > MOST_PARAMETERS:
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                small = shrink(config, has_real_heads)
                model = AutoModelForCausalLM.from_config(
                    small, attn_implementation=attention, dtype=torch.float32, **options
                )
                strengthen(model, evenly=has_real_heads)
            return model.eval()
        except Exception:  # a family's constructor may raise anything; then the next way is tried
            continue
    return None


def strengthen(model: nn.Module, *, evenly: bool = False) -> None:
    """Weights so large that what leaks from one conversation into the next shows in the logits. `evenly`: as large as that in matrices
    wider than a twin's usual ones, so that rounding does not show too."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                if parameter.ndim < 2:  # a bias, a norm, a gate: what is 0 or 1 at first could be ignored unseen
                    parameter.add_(torch.randn_like(parameter), alpha=0.15)
                else:
                    width = max(HIDDEN, parameter.shape[-1]) if evenly else HIDDEN
                    parameter.normal_(0.0, 0.15 * (HIDDEN / width) ** 0.5)


def _by_rebuilding(config: PretrainedConfig, has_real_heads: bool) -> PretrainedConfig:
    """Through the constructor, which works out again what depends on the sizes."""
    values = config.to_dict()
    text = next((values[key] for key in ("text_config", "llm_config") if isinstance(values.get(key), dict)), values)
    _shrink(text, has_real_heads)
    for key in ("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "auto_map"):
        values.pop(key, None)
    return type(config)(**values)


def _by_setting(config: PretrainedConfig, has_real_heads: bool) -> PretrainedConfig:
    """Attribute by attribute on a copy, for constructors that do not take their own values."""
    small = copy.deepcopy(config)
    text = small.get_text_config(decoder=True)
    before = text.to_dict()
    after = copy.deepcopy(before)
    _shrink(after, has_real_heads)
    for key, value in after.items():
        if value != before[key]:
            try:
                setattr(text, key, value)
            except AttributeError:  # worked out from others
                continue
    return small


def _of_its_text(config: PretrainedConfig, has_real_heads: bool) -> PretrainedConfig:
    """The language part of a multimodal model alone."""
    text = config.get_text_config(decoder=True)
    if text is config:
        raise ValueError("has no other part")
    return _by_rebuilding(text, has_real_heads)


def _shrink(values: dict[str, Any], has_real_heads: bool) -> None:
    real = _real_heads(values) if has_real_heads else {}
    old_layers = next((values[key] for key in LAYER_KEYS if _is_count(values.get(key))), 0)
    layers = _layers(values, old_layers)
    for key, value in list(values.items()):
        if key in LAYER_KEYS and _is_count(value):
            values[key] = min(value, layers)
        elif isinstance(value, list) and len(value) == old_layers:
            values[key] = [SIZES[key] if key in SIZES and _is_count(item) else item for item in value[:layers]]
        elif key == "per_layer_config" and isinstance(value, dict):
            values[key] = {layer: part for layer, part in value.items() if int(layer) < layers}
            for part in values[key].values():
                _shrink_sizes(part)
        elif key in KEY_VALUE_HEADS and _is_count(value):
            heads = next((values[name] for name in ("num_attention_heads", "n_head", "n_heads") if name in values), 0)
            values[key] = 1 if value == 1 else HEADS if value == heads or heads == HEADS == value else HEADS // 2
        elif key in TOKENS:
            values[key] = None if value is None else TOKENS.index(key)
        elif key == "num_kv_shared_layers" and _is_count(value):
            values[key] = layers // 2
    # the heads last: the number of key-value heads was judged by the old one
    _shrink_sizes(values)
    for key, inner in values.items():
        if isinstance(inner, dict):
            if "attn" in key or "attention" in key:
                _shrink_sizes(inner)
            if not has_real_heads:
                _shrink_nested(inner)
    values.update(real)


def _real_heads(values: dict[str, Any]) -> dict[str, int]:
    """The sizes of a head as they are, and the width of as many of them as a twin has."""
    kept = {key: values[key] for key in HEAD_SIZES if _is_count(values.get(key))}
    width = next((values[key] for key in HIDDEN_SIZES if _is_count(values.get(key))), 0)
    count = next((values[key] for key in HEAD_COUNTS if _is_count(values.get(key))), 1)
    size = kept.get("head_dim", width // count)
    return kept | {key: HEADS * size for key in HIDDEN_SIZES if _is_count(values.get(key))}


def _shrink_sizes(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if key in SIZES and _is_count(value):
            values[key] = min(value, SIZES[key]) if key in AT_MOST else SIZES[key]


def _shrink_nested(values: dict[str, Any]) -> None:
    """Sections of a rotary embedding over several axes must fill the head again."""
    sections = values.get("mrope_section")
    if isinstance(sections, list) and len(sections) == 3:
        half = max(3, int(HEAD_SIZE * (values.get("partial_rotary_factor") or 1.0)) // 2)
        values["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    for inner in values.values():
        if isinstance(inner, dict):
            _shrink_nested(inner)


def _layers(values: dict[str, Any], old_layers: int) -> int:
    """Enough layers for one of each kind."""
    cover = 2
    for key, value in values.items():
        if isinstance(value, list) and len(value) == old_layers and all(isinstance(item, str | int) for item in value):
            cover = max(cover, *(value.index(kind) + 1 for kind in set(value)))
        elif _is_count(value) and any(part in key for part in ("period", "interval", "offset", "pattern", "_step")):
            cover = max(cover, value + 1)
    if values.get("num_kv_shared_layers"):
        cover *= 2
    return min(cover, MOST_LAYERS, old_layers or cover)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
