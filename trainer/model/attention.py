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
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from trainer.run.exits import BadInput

VARLEN = "dolphin_varlen"
SEGMENTED = "dolphin_segments"  # "sdpa" in the name, and families without it would refuse

UNSUPPORTED = ("position_bias", "head_mask")
"""Arguments of special attentions that would change the result if ignored."""

QUERY_BLOCK = 1024
"""Query tokens whose scores are held at once where attention needs the scores themselves (soft-capping, sinks)."""


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
    """torch.nn.attention.varlen over query (1, H, N, D), key and value (1, K, N, D); returns (1, N, H, D).

    What that kernel has not (soft-capped scores, sinks, dropout) is computed as `segmented_attention` does.
    Many parameters: transformers' attention interface has them.
    """
    from torch.nn.attention.varlen import varlen_attn

    if dropout or any(kwargs.get(name) is not None for name in ("softcap", "s_aux")):
        return segmented_attention(
            module, query, key, value, attention_mask, cu_seq_lens_q=cu_seq_lens_q, scaling=scaling,
            sliding_window=sliding_window, dropout=dropout, **kwargs,
        )  # fmt: skip
    _refuse(kwargs)
    if attention_mask is not None:
        raise BadInput("this model hands its attention a mask of its own, which packed attention does not have")
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
    """Causal attention one conversation at a time: exact, and no work across conversations. Shapes as `varlen_attention`.
    Many parameters: transformers' attention interface has them.

    SDPA, unless the scores themselves are needed: `softcap` bounds them by cap x tanh(score / cap), `s_aux` (H) is a sink
    for each head that takes its share of the softmax and gives no value.
    """
    _refuse(kwargs)
    if attention_mask is not None:
        raise BadInput("this model hands its attention a mask of its own, which packed attention does not have")
    bounds = cu_seq_lens_q.tolist()
    softcap, sinks_H = kwargs.get("softcap"), kwargs.get("s_aux")
    outputs = []
    for start, end in itertools.pairwise(bounds):
        length = end - start
        if length == 0:
            continue
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        if softcap is not None or sinks_H is not None:
            outputs.append(_by_scores(q, k, v, scaling, sliding_window, softcap, sinks_H, dropout))
            continue
        mask = (
            _window_mask(length, sliding_window, query.device) if sliding_window and length > sliding_window else None
        )
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, dropout_p=dropout,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )  # fmt: skip
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _by_scores(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None,
    softcap: float | None, sinks_H: torch.Tensor | None, dropout: float,
) -> torch.Tensor:  # fmt: skip
    """Attention within one conversation with its scores written out, a block of queries at a time. (1, H, L, D)

    Many parameters: all that a family's attention may differ in.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    length = query.shape[2]
    allowed = _window_mask(length, window or length, query.device)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    def block(first: int) -> torch.Tensor:
        rows = slice(first, min(first + QUERY_BLOCK, length))
        scores = query[:, :, rows] @ key[:, :, : rows.stop].transpose(2, 3) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.float().masked_fill(~allowed[rows, : rows.stop], float("-inf"))
        if sinks_H is not None:
            sinks = sinks_H.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sinks], dim=-1)
        shares = torch.softmax(scores, dim=-1)[..., : rows.stop].to(value.dtype)
        return F.dropout(shares, dropout) @ value[:, :, : rows.stop]

    if length <= QUERY_BLOCK or not torch.is_grad_enabled():
        return torch.cat([block(first) for first in range(0, length, QUERY_BLOCK)], dim=2)
    return torch.cat([checkpoint(block, first, use_reentrant=False) for first in range(0, length, QUERY_BLOCK)], dim=2)


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)


def _refuse(kwargs: dict[str, Any]) -> None:
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise BadInput(f"this model's attention uses {name}, which packed attention does not have")


def _has_flash_attn() -> bool:
    try:
        importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _has_varlen() -> bool:
    found: bool = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return found


AttentionInterface.register(VARLEN, varlen_attention)
AttentionInterface.register(SEGMENTED, segmented_attention)
