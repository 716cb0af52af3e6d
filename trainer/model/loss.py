"""Chunked cross-entropy: logits only where there is a label, a bounded number of them at a time.

Owns the loss and its gradient by hidden states and output embedding. The gradient is computed in the forward pass, chunk
by chunk, so that no logits are kept for the backward pass: at 16,384 labelled tokens and 128,256 entries the plain loss
holds over 16 GB, this one `chunk` x 128,256 x 4 bytes (1 GB at 2,048) and the weight's gradient.
Legend: B sequences, T tokens, N labelled tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.data.batch import IGNORE
from trainer.model import token_rows
from trainer.model.tally import Tally


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a family does to the output embedding's product: logit = cap x tanh(scale x product / cap), without a cap
    scale x product."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """By the keys that families have for it (`config` of transformers, or a dict)."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config

        def value(key: str) -> float | None:
            return getattr(text, key, None)

        scale = (value("logit_scale") or 1.0) * (value("lm_head_multiplier") or 1.0) / (value("logits_scaling") or 1.0)
        return cls(float(scale), value("final_logit_softcapping"))

    @property
    def is_identity(self) -> bool:
        return self == LogitTransform()

    def apply_(self, product: torch.Tensor) -> torch.Tensor:
        """The logits, in the buffer of `product`."""
        if self.scale != 1.0:
            product.mul_(self.scale)
        if self.cap is not None:
            product.div_(self.cap).tanh_().mul_(self.cap)
        return product

    def derivative_(self, logits: torch.Tensor) -> torch.Tensor | float:
        """d logit / d product where the logits are `logits`, in their buffer; a number where it is the same everywhere."""
        if self.cap is None:
            return self.scale
        return logits.div_(self.cap).square_().neg_().add_(1.0).mul_(self.scale)


class LossHead(nn.Module):
    """The output embedding, asked for a loss instead of logits. Keeps its parameter names: `weight` and `bias`.

    A module of its own, so that ZeRO-3 gathers the partitioned weight around `forward`.
    """

    def __init__(self, linear: nn.Linear, chunk: int, transform: LogitTransform = LogitTransform()) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        token_rows.move(linear, self)
        self.chunk = chunk
        self.transform = transform
        self.gives_logits = False
        """Asked for the logits of the labelled positions instead: for a comparison, for an answer."""
        self.tally = Tally()

    def forward(
        self,
        hidden_BTH: torch.Tensor,
        labels_BT: torch.Tensor,
        weights_BT: torch.Tensor,
        labelled_N: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum over labelled positions of weight x cross-entropy: an fp32 scalar, 0 where there is no label.

        `labelled_N` are the flattened positions that have a label; where they are not given they are looked for, and a GPU
        is waited for.
        """
        where_N = (labels_BT.reshape(-1) != IGNORE).nonzero().squeeze(1) if labelled_N is None else labelled_N
        hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1]).index_select(0, where_N)
        if self.gives_logits:
            return self.logits(hidden_NH)
        targets_N = labels_BT.reshape(-1).index_select(0, where_N)
        weights_N = weights_BT.reshape(-1).index_select(0, where_N)
        with_gradient = torch.is_grad_enabled()
        return _ChunkedCrossEntropy.apply(
            hidden_NH,
            token_rows.effective(self.weight, self),
            self.bias,
            targets_N,
            weights_N,
            self.chunk,
            self.transform,
            with_gradient,
            self.tally,
        )

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """All of them, in fp32: for a comparison, not for training."""
        return self.transform.apply_(
            nn.functional.linear(hidden_NH, token_rows.effective(self.weight, self), self.bias).float()
        )


CPU_CACHE_ENTRIES = 1 << 21
"""Logits that are held at once on a CPU: 8 MB stay in its caches, and malloc keeps a buffer of that size, where it gives a
larger one back to the kernel and gets it again page by page. 261 ms became 208 at 1,300 labels x 8,192 entries x 256, of which
187 are the matrix products."""
FEWEST_ROWS = 256
"""Every block reads and writes the weight's whole gradient."""


def _rows_at_once(chunk: int, weight_VH: torch.Tensor) -> int:
    if weight_VH.device.type != "cpu":
        return chunk
    return min(chunk, max(FEWEST_ROWS, CPU_CACHE_ENTRIES // int(weight_VH.shape[0])))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        weights_N: torch.Tensor,
        chunk: int,
        transform: LogitTransform,
        with_gradient: bool,
        tally: Tally,
    ) -> torch.Tensor:
        """Many parameters: autograd takes none by name."""
        loss = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        want_hidden = with_gradient and ctx.needs_input_grad[0]
        want_weight = with_gradient and ctx.needs_input_grad[1]
        want_bias = with_gradient and bias_V is not None and ctx.needs_input_grad[2]
        grad_hidden = torch.empty_like(hidden_NH) if want_hidden else None
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if want_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if want_bias and bias_V is not None else None
        rows = _rows_at_once(chunk, weight_VH)
        for start in range(0, hidden_NH.shape[0], rows):
            part = slice(start, start + rows)
            logits = torch.nn.functional.linear(hidden_NH[part], weight_VH, bias_V).float()
            if not transform.is_identity:
                logits = transform.apply_(logits)
            log_shares = torch.log_softmax(
                logits, dim=-1
            )  # asked to widen bf16 it would, with the narrow ones still there
            target = targets_N[part, None]
            of_targets = log_shares.gather(1, target).squeeze(1)
            loss -= (of_targets * weights_N[part]).sum()
            tally.add(log_shares, of_targets, with_entropy=not with_gradient)
            if grad_hidden is None and grad_weight is None and grad_bias is None:
                continue
            derivative = transform.derivative_(logits)
            del logits
            # d loss / d logits = weight x (softmax - one-hot), in the buffer of the logarithms
            gradient = log_shares.exp_()
            del log_shares  # or the buffer of this chunk is still held while the next one is made
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0)).mul_(weights_N[part, None])
            if not transform.is_identity:
                gradient.mul_(derivative)
            del derivative
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            gradient = gradient.to(hidden_NH.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, weight_VH, out=grad_hidden[part])
            if grad_weight is not None and gradient.dtype == grad_weight.dtype:
                grad_weight.addmm_(gradient.t(), hidden_NH[part])
            elif grad_weight is not None:
                grad_weight += gradient.t() @ hidden_NH[part]
            del gradient
        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VH.dtype),
            None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype),
        )
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (scale,) = grad_outputs
        gradients = tuple(None if g is None else g.mul_(scale.to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = ()
        return (*gradients, None, None, None, None, None, None)
