"""The model: configuration, weights, vocabulary and the wrapper that turns a packed batch into a loss.

Owns how a base model becomes the thing that is trained. Refuses to know DeepSpeed: it works alike on one process.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from trainer.model import attention
from trainer.model.loss import LossHead
from trainer.run import weight_names
from trainer.run.exits import BadInput
from trainer.run.spec import ModelSpec, NodeJob

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Configuration keys of models that do more to the logits than the output embedding."""

PREFIX = "model."
"""What PackedModel puts before the parameter names of the model inside."""


class PackedModel(nn.Module):
    """A causal language model that takes a packed batch and returns its summed loss, with no logits kept."""

    def __init__(self, model: nn.Module, loss_chunk: int) -> None:
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(head, nn.Linear):
            raise BadInput(
                f"{type(model).__name__} has no linear output embedding; dolphin trains causal language models"
            )
        model.set_output_embeddings(LossHead(head, loss_chunk))  # type: ignore[operator]

    def forward(
        self,
        ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        weights_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
    ) -> torch.Tensor:
        """Fields of a Batch; returns the fp32 scalar sum of weight x cross-entropy over its labels."""
        hidden_1NH = self.hidden(ids_BT, positions_BT, cu_seqlens, max_seqlen)
        return self.model.get_output_embeddings()(hidden_1NH, labels_BT, weights_BT)  # type: ignore[operator]

    def hidden(
        self, ids_BT: torch.Tensor, positions_BT: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """Last hidden states (1, B*T, H): the batch becomes one row, its conversations kept apart by `cu_seqlens`.

        No attention_mask and no cache: with either, transformers stops looking at the positions, and conversations
        would see each other.
        """
        decoder = self.model.get_decoder()  # type: ignore[operator]
        return decoder(
            input_ids=ids_BT.reshape(1, -1),
            position_ids=positions_BT.reshape(1, -1),
            use_cache=False,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=max_seqlen,
            max_length_k=max_seqlen,
        ).last_hidden_state


def hf_name(name: str) -> str:
    """Parameter name inside PackedModel -> the name that transformers gives it."""
    return name.removeprefix(PREFIX)


def build(job: NodeJob, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The base model on the CPU in the training precision, its vocabulary grown to the tokenizer's, ready to freeze.

    Raises BadInput for a base that is not there or that packing cannot train.
    """
    spec = job.spec.model
    kind = attention.choose(spec.attention, job.device, job.spec.train.precision)
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    dtype = DTYPES[job.spec.train.precision]
    try:
        config = AutoConfig.from_pretrained(spec.base, revision=spec.revision, **options)
        _refuse_logit_transforms(config)
        torch.manual_seed(job.spec.train.seed)
        if spec.init == "random":
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=kind, **options)
            model = model.to(dtype)
        else:
            model = _load(spec, config=config, dtype=dtype, attn_implementation=kind, **options)
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(f"model.base {spec.base!r} does not load: {_first_line(error)}") from error
    grow_vocabulary(model, len(tokenizer))
    if job.spec.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    return model


def _load(spec: ModelSpec, **options: Any) -> Any:
    """The base's weights, all of them: transformers starts a missing one from random values and goes on.

    Raises BadInput that names missing weights and those of another shape.
    """
    prefix = spec.weights_prefix
    mapping = {rf"^{re.escape(prefix)}": "", rf"\.{re.escape(prefix)}": "."} if prefix else None
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would warn of is an error here
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            spec.base, revision=spec.revision, output_loading_info=True, ignore_mismatched_sizes=True,
            key_mapping=mapping, **options,
        )  # fmt: skip
    except (
        RuntimeError
    ) as error:  # weights that cannot be brought into the model's own layout, for example a lost expert
        raise BadInput(f"model.base {spec.base!r} does not load: {_reason(error)}; fetch it again") from error
    finally:
        transformers_logging.set_verbosity(before)
    mismatched = tuple((name, tuple(has), tuple(asked)) for name, has, asked in sorted(info["mismatched_keys"]))
    difference = weight_names.Difference(tuple(sorted(info["missing_keys"])), mismatched, len(model.state_dict()))
    unexpected = sorted(info["unexpected_keys"])
    wrong = weight_names.problem(spec.base, difference, unexpected)
    if wrong:
        raise BadInput(f"model.base {wrong}")
    if prefix:
        print(f"model.base: the prefix {prefix!r} was taken off the names of its weights", flush=True)
    if unexpected:
        shown = ", ".join(unexpected[:3]) + (", ..." if len(unexpected) > 3 else "")
        print(
            f"warning: model.base has {len(unexpected)} weights that a {type(model).__name__} has no place for, and they "
            f"are not used: {shown}",
            flush=True,
        )
    return model


def _reason(error: RuntimeError) -> str:
    """The line of transformers' report that says what went wrong, else its first."""
    told = [line.strip() for line in str(error).splitlines() if line.strip().startswith("Error")]
    return told[0] if told else _first_line(error)


def grow_vocabulary(model: nn.Module, size: int) -> None:
    """Grow input and output embeddings to `size` rows; a new row is the mean of the old ones. Never shrinks.

    The mean needs no random numbers, so every rank and every attempt makes the same rows.
    """
    old = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if size <= old:
        return
    model.resize_token_embeddings(size, mean_resizing=False)  # type: ignore[operator]
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):  # type: ignore[operator]
            weight = layer.weight
            weight[old:] = weight[:old].float().mean(0).to(weight.dtype)


def _refuse_logit_transforms(config: Any) -> None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for key in LOGIT_TRANSFORMS:
        value = getattr(text, key, None)
        if value not in (None, 1, 1.0):
            raise BadInput(f"model.base has {key}={value}, which the chunked loss does not apply; choose another base")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
