"""`train:` of a job: the optimization."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.run.settings.adapter import AdapterSpec
from trainer.run.settings.base import Fraction, PositiveInt, SpecModel


class SpectrumSpec(SpecModel):
    snr: Annotated[str, Field(min_length=1)]
    """An SNR file written by `dolphin spectrum scan`, or a model folder to scan."""
    top: Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9])(\.[0-9]+)?%$")] = "50%"
    """Share of each module type to train, highest signal-to-noise ratio first."""


class UnfrozenSpec(SpecModel):
    spectrum: SpectrumSpec
    """Choose the layers by signal-to-noise ratio (Spectrum, arXiv 2406.06623)."""
    patterns: tuple[str, ...] = ()
    """Patterns to train besides, for example the norms and the embeddings, which have no ranking."""


class RecomputeEvery(SpecModel):
    every: PositiveInt
    """Recompute one layer in so many, and keep the activations of the others."""


class EvaluateEvery(SpecModel):
    epochs: Annotated[float, Field(gt=0)]
    """Measure after this share or number of epochs, rounded to whole steps."""


class StopSpec(SpecModel):
    metric: Annotated[str, Field(min_length=1)] = "eval_loss"
    """Name in metrics.jsonl: eval_loss, NAME/loss of a validation set, or a score of `evaluate.metrics`."""
    patience: PositiveInt = 3
    """Stop after this many evaluations in a row without a gain; the one before the first step does not count."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A gain is better than the best so far by more than this."""
    direction: Literal["lower", "higher"] | None = None
    """Which is better; known of losses (lower) and scores (higher)."""


class OptimizerSettings(SpecModel):
    """(group `train`)"""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    micro_batch: PositiveInt = 1
    """Packed sequences per GPU in one forward pass."""
    global_batch: PositiveInt | None = None
    """Packed sequences per optimizer step over all GPUs. State this or `accumulation`."""
    accumulation: PositiveInt | None = None
    """Micro batches per optimizer step and GPU; with it global_batch = micro_batch x accumulation x GPUs of `resources`."""
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """AdamW with decoupled weight decay; with moments in 8 bits (needs bitsandbytes); or Muon for hidden matrices and AdamW for the rest."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment; Muon's momentum is 0.95."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Adam's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay; not applied to vectors (norms and biases)."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the gradient's global norm to this; 0 does not clip."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up from 0. State this or `warmup_ratio`; neither is no warm-up."""
    warmup_ratio: Fraction | None = None
    """Warm-up as a share of all steps."""
    min_lr_ratio: Fraction = 0.0
    """The schedule ends at this share of the peak learning rate."""
    precision: Literal["bf16", "fp32", "fp8"] = "bf16"
    """Precision of forward and backward; master weights and moments are fp32 either way. `fp8` is bf16 whose matrices multiply in fp8, a scale for each row (torchao), on Ada and Hopper."""
    kernels: Literal["auto"] | bool = "auto"
    """Fused kernels for norms, gated activations and rotary embeddings (liger-kernel): `auto` takes them on a GPU where they are installed, know the model's family and give its values and gradients; `true` ends a run that cannot have them."""
    compile: Literal["auto"] | bool = False
    """Compile the decoder layers with torch.compile: the first steps take minutes longer, the others less. `auto` does it on a GPU, except under ZeRO-3, which gathers parameters within the layers."""
    gradient_checkpointing: bool | Literal["auto"] | RecomputeEvery = False
    """Recompute the activations of every layer, or of one in N ({every: N}), in the backward pass to save memory; `auto`: of as few as fit, by the plan."""
    activation_offloading: bool = False
    """Keep what recomputed layers begin from in host memory between the forward and the backward pass; needs gradient_checkpointing. Changes no result."""
    deterministic: bool = False
    """Take kernels that add up in one order, so that the same GPUs, number of them and software give the same bits: slower, by how much was not measured."""
    zero: Literal[0, 1, 2, 3, "auto"] = "auto"
    """DeepSpeed's ZeRO stage; `auto` takes the fastest that fits the GPU with room. Changes no result."""
    offload: Literal["none", "optimizer"] = "none"
    """`optimizer` keeps master weights and Adam's moments in host memory and updates them there: slower, for a state that GPUs cannot hold."""
    unfrozen: tuple[str, ...] | UnfrozenSpec | None = None
    """Regular expressions (re.search) over parameter names: what they hit is trained, the rest is frozen. None trains all."""
    adapter: AdapterSpec | None = None
    """Train small adapters beside the frozen base (LoRA, QLoRA) instead of its own weights."""
    loss_chunk: PositiveInt = 2048
    """Labelled tokens whose logits are held at once in the loss."""
    evaluate_every: Annotated[int, Field(ge=1)] | Literal["epoch", "never"] | EvaluateEvery = "epoch"
    """Measure the validation loss every this many steps, at the end of each `epoch`, after a share of one ({epochs: 0.25}), or `never`."""
    evaluate_at_start: bool = True
    """Measure the validation loss before the first step too."""
    stop: StopSpec | None = None
    """Stop early, when evaluations get no better; the schedule is that of the whole length."""
    log_every: PositiveInt = 1
    """Print a line every this many steps; metrics.jsonl has every step."""
    seed: int = 42
    """Seed of everything random: the held-out split, the order of the data, fresh weights, dropout."""

    @property
    def recompute_every(self) -> int:
        """One layer in so many is recomputed; 0: none. Raises ValueError for `auto`."""
        if self.gradient_checkpointing == "auto":
            raise ValueError("train.json must state train.gradient_checkpointing: the launcher settles it")
        if isinstance(self.gradient_checkpointing, RecomputeEvery):
            return self.gradient_checkpointing.every
        return int(self.gradient_checkpointing)

    @property
    def stored_precision(self) -> Literal["bf16", "fp32"]:
        """What parameters and activations are kept in."""
        return "fp32" if self.precision == "fp32" else "bf16"
