"""Attention over packed sequences: the one place that chooses the kernel and keeps conversations apart.

Owns the functions registered with transformers' attention interface. Tokens arrive as one row of all conversations of a
micro batch, with `cu_seq_lens_q` saying where each begins; none of these functions builds a mask of T x T entries.
Legend: N tokens of the micro batch, H heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from trainer.run import trainable
from trainer.run.exits import BadInput

VARLEN = "dolphin_varlen"
SEGMENTED = "dolphin_segments"  # "sdpa" in the name, and families without it would refuse

UNSUPPORTED = ("position_bias", "head_mask")
"""Arguments of special attentions that would change the result if ignored."""

QUERY_BLOCK = 1024
"""Query tokens whose scores are held at once where attention needs the scores themselves (soft-capping, sinks)."""


IN_WORDS = {
    "flash_attention_3": "FlashAttention 3", "flash_attention_2": "flash-attn", VARLEN: "torch's varlen flash attention",
    SEGMENTED: "SDPA, one conversation at a time", "sdpa": "SDPA", "eager": "attention written out",
}  # fmt: skip
PREFERENCE = ("flash_attention_3", "flash_attention_2", VARLEN, SEGMENTED)
"""What `auto` tries, the fastest first."""
HALF = ("flash_attention_3", "flash_attention_2", VARLEN)
"""Kernels for bf16 on a GPU alone."""
HOPPER = 9
"""Compute capability of the GPUs that FlashAttention 3 is written for."""


def usable(requested: str, device: str, precision: str, dropout: float = 0.0) -> tuple[str, ...]:
    """Implementations for transformers that can run here, the preferred one first; one alone where it was asked for by name.
    `dropout` is that of attention in training.

    Raises BadInput for a request that this device, precision or installation cannot serve.
    """
    if requested == "auto":
        return tuple(kind for kind in PREFERENCE if not lack(kind, device, precision, dropout))
    kind = {"varlen": VARLEN, "sdpa": SEGMENTED}.get(requested, requested)
    missing = lack(kind, device, precision, dropout)
    if missing:
        raise BadInput(f"model.attention {requested}: {IN_WORDS[kind]} {missing}; write `auto`")
    return (kind,)


def lack(kind: str, device: str, precision: str, dropout: float = 0.0) -> str:
    """Why a kernel cannot be used here; empty where it can."""
    if kind not in HALF:
        return ""
    if device != "cuda" or precision != "bf16":
        return "needs a GPU and bf16"
    capability = torch.cuda.get_device_capability()
    if kind == "flash_attention_3":
        if capability[0] != HOPPER:
            return "is for Hopper GPUs"
        if dropout:
            return "has no dropout"
        return "" if is_flash_attn_3_available() else "is not installed"
    if capability < (8, 0):
        return "needs an Ampere GPU or a newer one"
    if kind == "flash_attention_2":
        return "" if is_flash_attn_2_available() else "is not installed"
    return ""


def described(kind: str, requested: str, device: str, precision: str, dropout: float = 0.0) -> str:
    """Which kernel runs and why not one that `auto` would take before it, for the log and the card."""
    before = PREFERENCE[: PREFERENCE.index(kind)] if kind in PREFERENCE and requested == "auto" else ()
    reasons = {other: lack(other, device, precision, dropout) or "does not serve this model" for other in before}
    told = [f"{IN_WORDS[other]} {reason}" for other, reason in reasons.items()]
    if len(set(reasons.values())) == 1 and len(told) > 1:
        told = [f"flash attention {next(iter(reasons.values()))}"]
    why = "; ".join(told) if told else ("as asked" if requested != "auto" else "the fastest here")
    return f"{IN_WORDS.get(kind, kind)} ({why})"


def dropout_of(config: Any) -> float:
    """Dropout of attention in training, under the key that the family has for it."""
    text = config.get_text_config(decoder=True)
    return float(next((value for key in trainable.DROPOUTS if (value := getattr(text, key, None))), 0.0))


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
        found: tuple[torch.Tensor, None] = segmented_attention(
            module, query, key, value, attention_mask, cu_seq_lens_q=cu_seq_lens_q, scaling=scaling,
            sliding_window=sliding_window, dropout=dropout, **kwargs,
        )  # fmt: skip
        return found
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


@torch.compiler.disable
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
    lengths = cu_seq_lens_q.diff().tolist()
    # cut by `split`, whose gradient is one concatenation: that of a slice is a whole tensor of zeros, added up for every conversation
    parts = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    softcap, sinks_H = kwargs.get("softcap"), kwargs.get("s_aux")
    outputs = []
    for length, q, k, v in zip(lengths, *parts, strict=True):
        if length == 0:
            continue
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
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1), None


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


AttentionInterface.register(VARLEN, varlen_attention)
AttentionInterface.register(SEGMENTED, segmented_attention)
