"""PackedModel: the wrapper that turns a batch of conversations into a loss, and Way: how this family has to be called for it.

Owns what is handed to the decoder. Refuses to choose the way: the self-test does, by comparing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.model.attention import SEGMENTED
from trainer.model.loss import LogitTransform, LossHead
from trainer.run.exits import BadInput

PREFIX = "model."
"""What PackedModel puts before the parameter names of the model inside."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a decoder keeps conversations apart."""

    attention: str = SEGMENTED
    """Implementation of transformers' attention interface."""
    boundaries: bool = True
    """Hand over where conversations begin (`cu_seq_lens_q` and its kin); without, the restarting positions must do."""
    sequence_index: bool = False
    """Hand over the number of each token's conversation (`seq_idx`), which layers with a state may take."""
    rows: bool = False
    """One conversation a row, padded at its end, which causal layers cannot see. Only without packing."""

    def __str__(self) -> str:
        given = ["boundaries"] * self.boundaries + ["seq_idx"] * self.sequence_index
        return f"{self.attention}{', one conversation a row' if self.rows else ''}" + (
            f" with {' and '.join(given)}" if given else ""
        )


class PackedModel(nn.Module):
    """A causal language model that takes a packed batch and returns its summed loss, with no logits kept."""

    def __init__(
        self, model: nn.Module, loss_chunk: int, way: Way | None = None, router_loss: float | None = None
    ) -> None:
        """`way`, where not given, is what the self-test left at the model (`build`). `router_loss` is the weight of the
        load-balancing loss of a mixture of experts; the configuration's own where None."""
        super().__init__()
        self.model = model
        self.way: Way = way or getattr(model, "way", None) or Way()
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise BadInput(
                f"{type(model).__name__} has no linear output embedding; dolphin trains causal language models"
            )
        self.balance = Balance.of(model, router_loss)
        model.set_output_embeddings(LossHead(head, loss_chunk, LogitTransform.of(model.config)))

    def forward(
        self,
        ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        weights_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        labelled_N: torch.Tensor | None = None,
        row_ends: tuple[int, ...] | None = None,
    ) -> torch.Tensor:
        """Fields of a Batch; returns the fp32 scalar sum of weight x cross-entropy over its labels. Without the last two they
        are found on the device, which is waited for. Many parameters: a Batch has them.

        In training its gradient is that of this sum plus, for a mixture of experts, the load-balancing loss times the
        sum of the weights; its value is the sum alone, so that losses compare with those of other models.
        """
        output = self.decode(ids_BT, positions_BT, cu_seqlens, max_seqlen)
        loss = self.head(output.last_hidden_state, labels_BT, weights_BT, labelled_N)
        if self.balance is not None and self.training:
            extra = self.balance.loss(getattr(output, "router_logits", None), weights_BT, row_ends)
            loss = loss + (extra - extra.detach()).to(loss.dtype)
        return loss

    @property
    def head(self) -> LossHead:
        found: LossHead = self.model.get_output_embeddings()
        return found

    def hidden(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """Last hidden states (1, B*T, H), or (B, T, H) where the way is one conversation a row."""
        return self.decode(ids_BT, positions_BT, cu_seqlens, max_seqlen).last_hidden_state

    def decode(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> Any:
        """The decoder's output: the batch becomes one row, its conversations kept apart as `way` says.

        No attention_mask and no cache: with either, transformers stops looking at the positions, and conversations
        would see each other.
        """
        inputs: dict[str, Any] = {"use_cache": False}
        if self.way.rows:
            rows, length = ids_BT.shape
            positions = torch.arange(length, device=ids_BT.device).expand(rows, length)
            inputs |= {"input_ids": ids_BT, "position_ids": positions}
        else:
            inputs |= {"input_ids": ids_BT.reshape(1, -1), "position_ids": positions_BT.reshape(1, -1)}
        if self.way.boundaries:
            inputs |= {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens}
            inputs |= {"max_length_q": max_seqlen, "max_length_k": max_seqlen}
        if self.way.sequence_index:
            lengths = cu_seqlens.diff().long()
            numbers = torch.arange(len(lengths), dtype=torch.int32, device=ids_BT.device)
            inputs["seq_idx"] = numbers.repeat_interleave(lengths, output_size=ids_BT.numel())[None]
        if self.balance is not None and self.training:
            inputs["output_router_logits"] = True
        return decoder_of(self.model)(**inputs)


@dataclass(frozen=True, slots=True)
class Balance:
    """The load-balancing loss of a mixture of experts, as its family computes it."""

    weight: float
    function: Any
    """load_balancing_loss_func(router logits of every layer, number of experts, experts a token)."""
    num_experts: int
    num_chosen: int

    @classmethod
    def of(cls, model: Any, weight: float | None) -> Balance | None:
        """None for a family that has none, and for a weight of 0."""
        function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
        config = model.config.get_text_config()
        weight = getattr(config, "router_aux_loss_coef", None) if weight is None else weight
        experts = getattr(model, "num_experts", None)
        chosen = getattr(model, "num_experts_per_tok", None) or getattr(config, "num_experts_per_tok", None)
        if function is None or not weight or not experts or not chosen:
            return None
        if not any("expert" in name or "router" in name for name, _ in model.named_parameters()):
            return None  # a family that may have experts, in a model without
        return cls(float(weight), function, int(experts), int(chosen))

    def loss(
        self, router_logits: Any, weights_BT: torch.Tensor, row_ends: tuple[int, ...] | None = None
    ) -> torch.Tensor:
        """Sum over rows of the row's loss times its label weights, so that it does not depend on how rows are dealt to ranks
        and micro batches. A row counts up to its last label: padding behind it goes to experts for nothing."""
        if not router_logits:
            raise BadInput("this family does not hand out its router's logits: set model.router_loss: 0")
        rows, length = weights_BT.shape
        total = torch.zeros((), device=weights_BT.device)
        for row, weights_T in enumerate(weights_BT):
            end = _end_of(weights_T) if row_ends is None else row_ends[row]
            if end:
                logits = tuple(layer.reshape(rows, length, -1)[row, :end] for layer in router_logits)
                total = total + self.function(logits, self.num_experts, self.num_chosen) * weights_T.sum()
        return self.weight * total


def _end_of(weights_T: torch.Tensor) -> int:
    labelled = weights_T.nonzero()
    return int(labelled[-1]) + 1 if len(labelled) else 0


def decoder_of(model: Any) -> nn.Module:
    """What gives the last hidden states: the model without its head. A multimodal model's is that of its language part."""
    candidates = (model.get_decoder(), model.base_model, getattr(model, "model", None))
    return next(module for module in candidates if module is not None and module is not model)


def beside_language(model: Any) -> frozenset[str]:
    """Parameters that a text never reaches (the towers of a multimodal model), by name; none of a language model."""
    if not hasattr(model, "get_decoder"):
        return frozenset()
    reached = {id(parameter) for parameter in decoder_of(model).parameters()}
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        reached |= {id(parameter) for parameter in part.parameters()} if part is not None else set()
    return frozenset(
        name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) not in reached
    )


def hf_name(name: str) -> str:
    """Parameter name inside PackedModel -> the name that transformers gives it."""
    return name.removeprefix(PREFIX)
