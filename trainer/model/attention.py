"""Attention over packed sequences: the one place that chooses the kernel and keeps conversations apart.

Owns the functions registered with transformers' attention interface. Tokens arrive as one row of all conversations of a
micro batch, with `cu_seq_lens_q` saying where each begins; none of these functions builds a mask of T x T entries.
Legend: N tokens of the micro batch, H heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from trainer.run.exits import BadInput

VARLEN = "dolphin_varlen"
SEGMENTED = "dolphin_sdpa"

UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments of special attentions (soft-capped logits, sinks, biases) that would change the result if ignored."""


def choose(requested: str, device: Literal["cuda", "cpu"], precision: Literal["bf16", "fp32"]) -> str:
    """Name of the implementation for transformers: flash-attn, else torch's varlen, else SDPA a conversation at a time.

    Raises BadInput for a request that this device, precision or installation cannot serve.
    """
    half_on_gpu = device == "cuda" and precision == "bf16"
    if requested == "auto":
        if half_on_gpu and _has_flash_attn():
            return "flash_attention_2"
        return VARLEN if half_on_gpu and _has_varlen() else SEGMENTED
    if requested == "flash_attention_2" and not (half_on_gpu and _has_flash_attn()):
        raise BadInput("model.attention flash_attention_2 needs a GPU, bf16 and the flash-attn package; write `auto`")
    if requested == "varlen" and not (half_on_gpu and _has_varlen()):
        raise BadInput("model.attention varlen needs a GPU and bf16; write `auto`")
    return {"varlen": VARLEN, "sdpa": SEGMENTED}.get(requested, requested)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """torch.nn.attention.varlen over query (1, H, N, D), key and value (1, K, N, D); returns (1, N, H, D)."""
    from torch.nn.attention.varlen import varlen_attn

    _refuse(kwargs, dropout)
    window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
    out_NHD = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out_NHD, torch.Tensor)
    return out_NHD.unsqueeze(0), None


def segmented_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal SDPA one conversation at a time: exact, and no work across conversations. Shapes as `varlen_attention`."""
    _refuse(kwargs, dropout)
    bounds = cu_seq_lens_q.tolist()
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for start, end in itertools.pairwise(bounds):
        length = end - start
        if length == 0:
            continue
        mask = (
            _window_mask(length, sliding_window, query.device) if sliding_window and length > sliding_window else None
        )
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)


def _refuse(kwargs: dict[str, Any], dropout: float) -> None:
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise BadInput(
                f"this model's attention uses {name}, which packing does not support; set model.attention: eager"
            )
    if dropout:
        raise BadInput(
            f"the model's attention_dropout is {dropout}: packed attention has none; set it to 0 in its config"
        )


def _has_flash_attn() -> bool:
    try:
        importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _has_varlen() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


AttentionInterface.register(VARLEN, varlen_attention)
AttentionInterface.register(SEGMENTED, segmented_attention)
