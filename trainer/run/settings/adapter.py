"""`train.adapter:` of a job: small matrices that are trained beside frozen weights (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.run.settings.base import Fraction, PositiveInt, SpecModel


class AdapterSpec(SpecModel):
    type: Literal["lora", "qlora"]
    """`lora` beside the base in the training precision; `qlora` beside a base held in 4 bits (NF4, arXiv 2305.14314)."""
    rank: PositiveInt = 64
    """Rank of the two matrices of each adapted layer."""
    alpha: PositiveInt = 32
    """Scale: what the two matrices give is multiplied by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout of the adapters' input in training."""
    target: str | tuple[str, ...] = "all-linear"
    """Layers to adapt: `all-linear` (all but the output embedding), names such as [q_proj, v_proj], or a regular expression over whole module names."""
    exclude: tuple[str, ...] = ()
    """Names of layers to leave out of `target`."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers of the decoder layers to adapt; all where not given."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules to train whole besides, for example [embed_tokens, lm_head]; they are saved with the adapter."""
    trainable_tokens: bool = False
    """Train the embedding rows of the tokens that the job adds, and no other row."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train each weight's magnitude apart from its direction (DoRA, arXiv 2402.09353); slower."""
    init: Literal["default", "pissa", "olora", "eva"] = "default"
    """How the matrices begin: `default` adds nothing to the base, nor does `eva` (arXiv 2410.07170), which looks at the first batches; `pissa` (arXiv 2404.02948) and `olora` (arXiv 2406.01775) take a part of each weight out of it."""

    @property
    def changes_base(self) -> bool:
        """Whether the beginning is taken out of the base's own weights."""
        return self.init in ("pissa", "olora")
