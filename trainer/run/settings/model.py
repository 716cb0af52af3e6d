"""`model:` of a job: the base, its tokenizer and its attention."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.run.settings.base import Fraction, SpecModel


class SpecialTokens(SpecModel):
    bos_token: str | None = None
    """Beginning-of-text token; the tokenizer's own where not given."""
    eos_token: str | None = None
    """End-of-turn token that generation stops at; the tokenizer's own where not given."""
    pad_token: str | None = None
    """Padding token; the tokenizer's own where not given."""
    unk_token: str | None = None
    """Unknown token; the tokenizer's own where not given."""


class ModelSpec(SpecModel):
    base: Annotated[str, Field(min_length=1)]
    """The base model: a folder, or a Hugging Face hub id such as meta-llama/Meta-Llama-3.1-8B."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` takes only the configuration of the base model and starts from fresh weights."""
    weights_prefix: str | None = None
    """Prefix that a wrapper left before the names of the base's weights (`_orig_mod.`, `module.`); it is taken off."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; the base model's own where not given."""
    chat_template: str = "tokenizer"
    """`tokenizer` (the tokenizer's own), a family's format (`chatml`, `llama3`, `gemma3`, `qwen3` and others), a path to a .jinja file, or the template itself."""
    special_tokens: SpecialTokens = SpecialTokens()
    """Special tokens to set; one that the vocabulary lacks is added to it."""
    added_tokens: tuple[str, ...] = ()
    """Tokens to add to the vocabulary; the embeddings grow to hold them."""
    attention: Literal["auto", "flash_attention_3", "flash_attention_2", "varlen", "sdpa", "eager"] = "auto"
    """`auto`: FlashAttention 3 on Hopper and flash-attn on others where the node has them, else torch's variable-length flash attention, else SDPA."""
    attention_dropout: Fraction | None = None
    """Dropout of the attention weights in training; the base's own where not given."""
    router_loss: Annotated[float, Field(ge=0)] | None = None
    """Weight of a mixture of experts' load-balancing loss; the base's own (router_aux_loss_coef) where not given, 0 leaves it out."""
    trust_remote_code: bool = False
    """Allow a hub model to bring its own Python code."""
