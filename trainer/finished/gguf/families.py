"""What a model is called in GGUF: its architecture, its keys, its tensors' names, and what is done to their values.

Owns the families that can be written and everything about them that GGUF has otherwise than transformers. Names and keys are those of
the `gguf` package and of the GGUF specification. Refuses to know files, tokenizers and number formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trainer.run.exits import BadInput

Value = int | float | str

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor that holds what every rotary frequency is divided by."""


@dataclass(frozen=True, slots=True)
class Family:
    architecture: str
    """general.architecture."""
    pairs_neighbours: bool = False
    """Rotary embeddings turn neighbouring elements of a head in GGUF, the halves of a head in transformers: rows of q and k
    change places."""
    norms_add_one: bool = False
    """Norms multiply by 1 + weight in transformers, by the weight in GGUF."""
    has_window: bool = False
    problem: Callable[[Any], str] = lambda config: ""
    """What of a configuration a reader of GGUF would compute otherwise; empty where nothing is."""


def _scale_problem(config: Any) -> str:
    """Readers scale attention by the head's size, in the largest model by the hidden size a head, whatever the key says."""
    by_head = float(config.head_dim)
    by_hidden = config.hidden_size / config.num_attention_heads
    largest = {"gemma2": 46, "gemma3_text": 62}[config.model_type]
    expected = by_hidden if config.num_hidden_layers == largest else by_head
    if config.query_pre_attn_scalar != expected:
        return f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, where readers take {expected:g}"
    return ""


def _pattern_problem(config: Any) -> str:
    every = {"gemma2": 2, "gemma3_text": 6}[config.model_type]
    kinds = [
        "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
        for layer in range(len(config.layer_types))
    ]
    return "" if list(config.layer_types) == kinds else f"layer_types are not one full layer in {every}"


def _gemma_problem(config: Any) -> str:
    return _scale_problem(config) or _pattern_problem(config)


def _qwen_problem(config: Any) -> str:
    kinds = set(getattr(config, "layer_types", None) or ())
    return "some layers have a window (use_sliding_window)" if kinds - {"full_attention"} else ""


FAMILIES = {
    "llama": Family("llama", pairs_neighbours=True),
    "mistral": Family("llama", pairs_neighbours=True),
    "qwen2": Family("qwen2", problem=_qwen_problem),
    "qwen3": Family("qwen3", problem=_qwen_problem),
    "gemma2": Family("gemma2", norms_add_one=True, has_window=True, problem=_gemma_problem),
    "gemma3_text": Family("gemma3", norms_add_one=True, has_window=True, problem=_gemma_problem),
}
"""By transformers' model_type."""


def family_of(config: Any) -> Family:
    """Raises BadInput, in a line, for a model that is not written."""
    known = ", ".join(FAMILIES)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise BadInput(
            f"a {config.model_type} is not written as GGUF here ({known} are); llama.cpp's own converter may know it"
        )
    problem = family.problem(config)
    if problem:
        raise BadInput(f"this {config.model_type} cannot be GGUF: {problem}")
    return family


def head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def keys_of(config: Any, family: Family) -> dict[str, Value]:
    """The architecture's keys without its name before them. Raises BadInput for rotary embeddings that GGUF has no keys for."""
    heads, context = config.num_attention_heads, config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    if (
        window and config.model_type == "mistral"
    ):  # its architecture has no window there: up to its size they are the same
        context = min(context, window)
    found: dict[str, Value] = {
        "context_length": context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.key_length": head_size(config),
        "attention.value_length": head_size(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_size(config),
        "vocab_size": config.vocab_size,
    }
    if family.has_window and window:
        found["attention.sliding_window"] = window
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None):
            found[key] = float(getattr(config, key))
    return found | _rope_keys(config)


def _rope_keys(config: Any) -> dict[str, Value]:
    rope = dict(config.rope_parameters)
    found: dict[str, Value] = {}
    if "full_attention" in rope:
        local = rope.get("sliding_attention") or rope["full_attention"]
        if local.get("rope_type", "default") != "default":
            raise BadInput("layers with a window and a scaled rotary embedding have no keys in GGUF")
        found["rope.freq_base_swa"] = float(local["rope_theta"])
        rope = rope["full_attention"]
    found["rope.freq_base"] = float(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise BadInput("a rotary embedding of a part of each head is not written as GGUF here")
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
        original = rope.get("original_max_position_embeddings")
        if original:
            found["rope.scaling.original_context_length"] = int(original)
        unknown = {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"} & {
            k for k in rope if rope[k] is not None
        }
        if unknown:
            raise BadInput(f"rotary embeddings with {', '.join(sorted(unknown))} are not written as GGUF here")
    elif kind not in ("default", "llama3"):
        raise BadInput(f"rotary embeddings of the kind {kind} are not written as GGUF here")
    return found


def rope_factors(config: Any) -> torch.Tensor | None:
    """What each of a head's frequencies is divided by, fp32 (head size / 2): the scaling of Llama 3.1, which has no key.

    Long waves are divided by `factor`, short ones left, those between interpolated: the formula of Llama 3.1's model code.
    """
    rope = dict(config.rope_parameters)
    if rope.get("rope_type") != "llama3":
        return None
    size = head_size(config)
    original = float(rope["original_max_position_embeddings"])
    low, high, factor = (float(rope[name]) for name in ("low_freq_factor", "high_freq_factor", "factor"))
    factors = []
    for index in range(0, size, 2):
        wave = 2 * math.pi * float(rope["rope_theta"]) ** (index / size)
        smooth = min(1.0, max(0.0, (original / wave - low) / (high - low)))
        factors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def changed(name: str, tensor: torch.Tensor, config: Any, family: Family) -> torch.Tensor:
    """The values that GGUF has for transformers' tensor `name`, in fp32."""
    values = tensor.float()
    if family.norms_add_one and name.endswith("norm.weight"):
        return values + 1.0
    module = name.rsplit(".", 1)[0]
    if family.pairs_neighbours and module.endswith(("q_proj", "k_proj")):
        heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
        rest = values.shape[1:]
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *rest)
        return halves.transpose(1, 2).reshape(values.shape)
    return values


def names_of(tensors: Iterator[str] | list[str], config: Any, family: Family) -> dict[str, str]:
    """GGUF's name of each of transformers' tensors. Raises BadInput for one that it has none for."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    known = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {}
    for name in tensors:
        if name.endswith("rotary_emb.inv_freq"):
            continue
        new = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise BadInput(
                f"{name} has no name in GGUF's {family.architecture}: this model is more than a {config.model_type}"
            )
        found[name] = new
    return found
