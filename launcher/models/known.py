"""Configurations of well-known base models, for planning where the hub is not reachable. Facts; knows nothing else.

Keys are the last part of the hub id in lower case. Numbers are those of the published config.json files.
"""

from __future__ import annotations

from typing import Any


def _config(
    family: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    """Many parameters: a line of the table below reads like a row of the makers' own."""
    return {
        "model_type": family, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary, **more,
    }  # fmt: skip


_LLAMA_8B = _config("llama", 4096, 14336, 32, 32, 8, 128256)
_LLAMA_70B = _config("llama", 8192, 28672, 80, 64, 8, 128256)
_LLAMA_1B = _config("llama", 2048, 8192, 16, 32, 8, 128256, head_dim=64, tie_word_embeddings=True)
_LLAMA_3B = _config("llama", 3072, 8192, 28, 24, 8, 128256, head_dim=128, tie_word_embeddings=True)
_MISTRAL_7B = _config("mistral", 4096, 14336, 32, 32, 8, 32000)
_MISTRAL_7B_V3 = _config("mistral", 4096, 14336, 32, 32, 8, 32768)
_NEMO = _config("mistral", 5120, 14336, 40, 32, 8, 131072, head_dim=128)
_QWEN2_5 = {
    "0.5b": _config("qwen2", 896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True),
    "1.5b": _config("qwen2", 1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True),
    "3b": _config("qwen2", 2048, 11008, 36, 16, 2, 151936, tie_word_embeddings=True),
    "7b": _config("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "14b": _config("qwen2", 5120, 13824, 48, 40, 8, 152064),
    "32b": _config("qwen2", 5120, 27648, 64, 40, 8, 152064),
    "72b": _config("qwen2", 8192, 29568, 80, 64, 8, 152064),
}
_QWEN3 = {
    "0.6b": _config("qwen3", 1024, 3072, 28, 16, 8, 151936, head_dim=128, tie_word_embeddings=True),
    "1.7b": _config("qwen3", 2048, 6144, 28, 16, 8, 151936, head_dim=128, tie_word_embeddings=True),
    "4b": _config("qwen3", 2560, 9728, 36, 32, 8, 151936, head_dim=128, tie_word_embeddings=True),
    "8b": _config("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128),
    "14b": _config("qwen3", 5120, 17408, 40, 40, 8, 151936, head_dim=128),
    "32b": _config("qwen3", 5120, 25600, 64, 64, 8, 151936, head_dim=128),
}

KNOWN_CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("meta-llama-3-8b", "meta-llama-3-8b-instruct", "meta-llama-3.1-8b", "meta-llama-3.1-8b-instruct", "llama-3.1-8b", "llama-3.1-8b-instruct"), _LLAMA_8B),
    **dict.fromkeys(("meta-llama-3-70b", "meta-llama-3.1-70b", "meta-llama-3.1-70b-instruct", "llama-3.1-70b", "llama-3.1-70b-instruct", "llama-3.3-70b-instruct"), _LLAMA_70B),
    **dict.fromkeys(("llama-3.2-1b", "llama-3.2-1b-instruct"), _LLAMA_1B),
    **dict.fromkeys(("llama-3.2-3b", "llama-3.2-3b-instruct"), _LLAMA_3B),
    **dict.fromkeys(("mistral-7b-v0.1", "mistral-7b-instruct-v0.2"), _MISTRAL_7B),
    **dict.fromkeys(("mistral-7b-v0.3", "mistral-7b-instruct-v0.3"), _MISTRAL_7B_V3),
    **dict.fromkeys(("mistral-nemo-base-2407", "mistral-nemo-instruct-2407"), _NEMO),
    **{f"qwen2.5-{size}{suffix}": config for size, config in _QWEN2_5.items() for suffix in ("", "-instruct")},
    **{f"qwen3-{size}{suffix}": config for size, config in _QWEN3.items() for suffix in ("", "-base")},
}  # fmt: skip
