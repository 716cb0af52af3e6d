"""Memory of one GPU in training, by part, as the trainer and DeepSpeed 0.19 really lay it out. Pure functions of sizes.

Owns the formulas and their sources. Refuses to know cards and prices. Sizes are bytes; a run's peak is the largest of
several moments: stage 3's gathering of parameters, the loss of the last micro batch, the backward pass of a layer in it,
its end, and the optimizer's step.
Held against PyTorch's own accounting of real DeepSpeed steps by tests/process/test_memory_formulas.py.
Legend: n tokens of a micro batch, H hidden, I intermediate, V vocabulary, L layers, W ranks, N parameters, T trained ones,
c labelled tokens of a chunk of the loss, e bytes of an element in forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.models.architecture import TrainedModel, count
from launcher.units import MIB
from trainer.run.optimizer_state import OPTIMIZER_STATES, OptimizerState
from trainer.run.recomputation import is_recomputed

REDUCE_BUCKET = 500_000_000
"""Elements of DeepSpeed's gradient bucket (`reduce_bucket_size`, its default, which the trainer leaves)."""
MAX_LIVE_PARAMETERS = 1_000_000_000
"""Elements of gathered parameters that stage 3 keeps (`stage3_max_live_parameters`, default)."""
PREFETCH = 50_000_000
"""Elements that stage 3 gathers ahead in one go (`stage3_prefetch_bucket_size`, default)."""
PERSISTENT_BELOW = 100_000
"""Parameters smaller than this are never partitioned by stage 3 (`stage3_param_persistence_threshold`, default)."""

CUDA_CONTEXT = 512 * MIB
"""Driver context, kernels and cuBLAS workspace of a PyTorch process: 400 to 600 MiB in nvidia-smi before any tensor."""
NCCL_BUFFERS = 512 * MIB
"""Channels of one communicator on a node of 8: 4 MiB times channels, peers and protocols (NCCL_BUFFSIZE), 300 to 600 MiB."""
COMMUNICATORS = 2
"""DeepSpeed clones the world group for its data-parallel traffic; both carry collectives."""
FRAGMENTATION = 0.06
"""Share of what comes and goes within a step that the caching allocator holds beyond it; with expandable segments, which
the trainer sets, reserved over allocated memory is usually 3 to 8% more."""

QUANTISED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a number held in 4 bits, with its share of the scales."""

Stage = Literal[0, 1, 2, 3]


@dataclass(frozen=True, slots=True)
class Workload:
    """What of a job decides its memory on one GPU."""

    ranks: int
    micro_batch: int
    sequence_length: int
    micro_batches: int
    """Per step and GPU."""
    loss_chunk: int
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: int = 1
    """One layer in so many is recomputed; 0: none."""
    labelled_share: float = 1.0
    """Of the tokens of a micro batch; 1 is the most there can be."""
    has_overlap: bool = True
    """Gradients are reduced during the backward pass, through two buckets: so on a GPU."""
    reduce_bucket: int = REDUCE_BUCKET
    """Elements of a bucket."""
    offloads: bool = False
    """Masters and moments are in host memory (`train.offload: optimizer`)."""
    offloads_activations: bool = False
    """What recomputed layers begin from is in host memory (`train.activation_offloading`)."""
    optimizer: OptimizerState = OPTIMIZER_STATES["adamw"]
    """What is kept of a trained parameter."""

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.sequence_length

    @property
    def element_bytes(self) -> int:
        return 2 if self.precision == "bf16" else 4


PARTS = (
    "parameters", "master weights", "optimizer", "gradients", "activations", "logits and loss", "buffers",
    "CUDA and NCCL", "fragmentation",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU at the peak of a step, by part (names in PARTS), and the moment that is the peak."""

    stage: Stage
    parts: dict[str, int]
    moment: str

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def memory(model: TrainedModel, load: Workload, stage: Stage, on_gpu: bool = True) -> Memory:
    """The peak of a step at ZeRO `stage`, with what surrounds the allocator where `on_gpu`."""
    moments = moments_of(model, load, stage)
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    parts = {name: int(moments[moment].get(name, 0)) for name in PARTS}
    if on_gpu:
        coming_and_going = ("gradients", "activations", "logits and loss", "buffers")
        parts["CUDA and NCCL"] = CUDA_CONTEXT + (COMMUNICATORS * NCCL_BUFFERS if load.ranks > 1 else 0)
        parts["fragmentation"] = int(FRAGMENTATION * sum(parts[name] for name in coming_and_going))
    return Memory(stage, parts, moment)


def runs_as(stage: Stage, precision: str) -> Stage:
    """The stage that the trainer gives to DeepSpeed: stage 0 in bf16 is run as stage 1, which sends the same gradients."""
    return 1 if stage == 0 and precision == "bf16" else stage


def moments_of(model: TrainedModel, load: Workload, stage: Stage) -> dict[str, dict[str, float]]:
    """Moment -> part -> bytes that PyTorch has allocated then."""
    stage = runs_as(stage, load.precision)
    if load.offloads and stage == 0:
        raise ValueError("stage 0 has no partition of the optimizer that could be in host memory")
    state = _state(model, load, stage)
    accumulated, in_step = _gradients(model, load, stage)
    idle_buffers, busy_buffers = _buffers(model, load, stage)
    kept, layer = activations(model, load)
    layer += load.element_bytes * model.largest_quantised  # one weight at a time is there in full, forward and backward
    loss_kept, loss_peak = loss_memory(model, load)
    return {
        "loss": {
            **state, "gradients": accumulated, "activations": kept, "logits and loss": loss_peak, "buffers": idle_buffers,
        },
        "backward": {
            **state, "gradients": max(accumulated, _first_gradients(model, load, stage)), "activations": kept + layer,
            "buffers": busy_buffers,
        },
        "end of the backward": {
            **state, "gradients": max(accumulated, _last_gradients(model, load, stage)), "activations": layer,
            "buffers": busy_buffers,
        },
        "gathering": {**state, "gradients": accumulated, "buffers": idle_buffers + _gathering(model, load, stage)},
        "end of the loss": {
            **state, "gradients": accumulated, "activations": kept,
            "logits and loss": loss_kept, "buffers": busy_buffers + _oversized(model, load, stage),
        },
        "step": {**state, "gradients": in_step, "buffers": idle_buffers},
    }  # fmt: skip


def _state(model: TrainedModel, load: Workload, stage: Stage) -> dict[str, float]:
    """Parameters, masters and the optimizer's moments. Frozen parameters have the first alone.

    Stages 1 to 3 keep masters of their partition in fp32 training too (`single_partition_of_fp32_groups`); stage 0 in
    fp32 is plain data parallelism and updates the parameters themselves. Offloaded, masters and moments are elsewhere.
    """
    e, share = load.element_bytes, 1 / load.ranks
    master, moments = load.optimizer.master.held_bytes, moments_bytes(model, load.optimizer)
    parameters = parameter_bytes(model, e)
    if stage == 0:
        return {"parameters": parameters, "master weights": 0, "optimizer": moments}
    if stage == 3:
        parameters = (parameters - e * _persistent(model)) * share + e * _persistent(model)
    if load.offloads:
        return {"parameters": parameters, "master weights": 0, "optimizer": 0}
    return {
        "parameters": parameters,
        "master weights": master * model.num_trained * share,
        "optimizer": moments * share,
    }


def parameter_bytes(model: TrainedModel, element_bytes: int) -> float:
    """Of the whole model as the forward pass uses it. A weight in 4 bits has a scale of 8 bits for each 64 numbers, and those
    one of 32 bits for each 256 of them (QLoRA's double quantisation, arXiv 2305.14314)."""
    return element_bytes * (model.num_parameters - model.num_quantised) + QUANTISED_BYTES * model.num_quantised


def moments_bytes(model: TrainedModel, optimizer: OptimizerState) -> float:
    """Of the optimizer's moments over all ranks."""
    shapes = model.architecture.shapes
    return optimizer.moment_bytes((name, shapes[name]) for name in model.trained)


def _gradients(model: TrainedModel, load: Workload, stage: Stage) -> tuple[float, float]:
    """(while micro batches accumulate, while the optimizer steps).

    Stage 1 accumulates whole gradients in fp32; stages 2 and 3 their partition. One micro batch is not added to anything
    at stage 1: its step has its partition twice, as it was and in fp32. That of stage 2 checks the largest gradient for
    overflow with two temporary copies. That of stage 3 copies its partition. Offloaded, gradients leave as soon as they are
    complete; stage 2 accumulates them on the GPU all the same where it does so in more than their own precision.
    """
    e, T, share = load.element_bytes, model.num_trained, 1 / load.ranks
    is_accumulating = load.micro_batches > 1
    if load.offloads:
        in_step = 4 * T * share if stage == 2 and e == 2 else 0
        accumulated = 4 * T if stage == 1 else in_step
        return (accumulated if is_accumulating else 0), in_step
    if stage == 0:
        return (e * T if is_accumulating else 0), e * T
    if stage == 1 and _sums_whole(load, stage):
        return 4 * T, 4 * T
    if stage == 1:
        return (e * T if is_accumulating else 0), (e + 4) * T * share
    partition = 4 * T * share
    if stage == 2:
        return (partition if is_accumulating else 0), partition + 8 * min(model.largest_trained, T * share)
    return partition, 2 * partition


def _sums_whole(load: Workload, stage: Stage) -> bool:
    """Whether stage 1 runs as DeepSpeed's `BF16_Optimizer`: whole gradients in fp32 from start to end, reduced after the last
    micro batch from where they are, without buckets."""
    return stage == 1 and load.precision == "bf16" and load.micro_batches > 1 and not load.offloads


def _first_gradients(model: TrainedModel, load: Workload, stage: Stage) -> float:
    """Gradients early in the backward pass of a step that has one micro batch only: there is nothing yet to add them to."""
    if _sums_whole(load, stage):
        return 4 * model.num_trained + load.element_bytes * model.largest_trained
    if stage in (0, 1) and not load.has_overlap:
        return load.element_bytes * model.num_trained
    if load.offloads and (stage != 2 or load.precision == "fp32"):
        return 0
    return 4 * model.num_trained / load.ranks if stage else load.element_bytes * model.num_trained


def _last_gradients(model: TrainedModel, load: Workload, stage: Stage) -> float:
    """Gradients when the lowest layer's are computed. Stages 0 and 1 keep those of other ranks' partitions till the step."""
    if stage in (0, 1) and not _sums_whole(load, stage):
        return load.element_bytes * model.num_trained
    return _first_gradients(model, load, stage)


def _buffers(model: TrainedModel, load: Workload, stage: Stage) -> tuple[float, float]:
    """(outside the backward pass, in it). Buckets have their full size whatever the model's.

    Stages 1 and 2 fill two buckets in turn where they overlap; stage 1 keeps them until the step is over. Stage 3 has one
    bucket from the start, and the parameters that it gathered.
    """
    bucket = load.element_bytes * load.reduce_bucket
    if _sums_whole(load, stage):
        return 0, 0
    if stage == 0:
        return 0, load.element_bytes * min(load.reduce_bucket, model.num_trained)
    if stage == 3:
        gathered = load.element_bytes * min(MAX_LIVE_PARAMETERS, model.num_parameters)
        return bucket + gathered, bucket + gathered
    both = bucket * (2 if load.has_overlap else 1)
    passage = load.element_bytes * model.largest_trained if load.offloads else 0
    """Through which gradients go to and from the host."""
    return (both if stage == 1 and load.micro_batches > 1 else 0) + passage, both + passage


def _gathering(model: TrainedModel, load: Workload, stage: Stage) -> float:
    """Stage 3 receives parameters in one row and copies each out of it, the last one twice, before it lets the row go: frozen
    ones too."""
    largest = max(map(count, model.architecture.shapes.values()))
    return load.element_bytes * (min(PREFETCH, model.num_parameters) + largest) if stage == 3 else 0


def _oversized(model: TrainedModel, load: Workload, stage: Stage) -> float:
    """A parameter larger than a bucket is reduced on its own, through a copy of its gradient."""
    return (
        load.element_bytes * model.largest_trained
        if stage in (1, 2) and model.largest_trained > load.reduce_bucket
        else 0
    )


def activations(model: TrainedModel, load: Workload) -> tuple[float, float]:
    """(kept until the backward pass, needed besides while one layer's is run).

    A recomputed layer that gradients reach keeps its input, e n H, and is run again when its turn comes; another keeps
    everything. Below the lowest trained parameter nothing is kept. The last norm keeps its input in fp32 and
    its normalised output. Attention is flash attention over packed sequences: no matrix of n x n, but its output.
    """
    architecture = model.architecture
    e, n = load.element_bytes, load.tokens
    H = architecture.hidden
    last_norm = n * H * (2 * e + (4 if e == 2 else 0))
    reached = range(architecture.lowest_reached(model.trained), architecture.num_layers)
    saved = {layer: _saved_by_layer(model, load, layer) for layer in reached}
    again = [layer for layer in reached if is_recomputed(layer, load.gradient_checkpointing)]
    kept = sum(size for layer, size in saved.items() if layer not in again) + last_norm
    if again:
        begins = e * n * H
        # of those in host memory one is back at a time; the first layer's, of frozen embeddings, never goes
        kept += begins * (1 if load.offloads_activations else len(again))
        # the gradients of the two products of the MLP and of the layer's output live beside what was recomputed
        return kept, max(saved[layer] for layer in again) + e * n * (2 * architecture.intermediate + H)
    return kept, e * n * (2 * architecture.intermediate + 2 * H)


def offloaded_activations(model: TrainedModel, load: Workload) -> int:
    """What one rank's recomputed layers leave in host memory in a micro batch, those below the lowest trained one too."""
    architecture = model.architecture
    num_recomputed = sum(is_recomputed(n, load.gradient_checkpointing) for n in range(architecture.num_layers))
    size = load.element_bytes * load.tokens * architecture.hidden
    return num_recomputed * size if load.offloads_activations else 0


def _saved_by_layer(model: TrainedModel, load: Workload, layer: int) -> float:
    """What autograd keeps of one layer: of the MLP gate, its activation and up; of attention q, k, v, the output and its
    log-sum-exp; of both norms the fp32 input. What feeds a trained weight besides: the product for the MLP's last matrix,
    the scaled output of a norm for the matrices behind it, the normalised one for the norm. And the residual.
    """
    architecture = model.architecture
    e, n = load.element_bytes, load.tokens
    H, I = architecture.hidden, architecture.intermediate  # noqa: E741
    query = architecture.num_heads * architecture.head_size
    key = architecture.num_kv_heads * architecture.head_size
    ours = [name for name in architecture.layer_shapes(layer) if name in model.trained]
    attention_inputs = any(part in name for name in ours for part in ("q_proj", "k_proj", "v_proj", "qkv_proj"))
    mlp_inputs = any(part in name for name in ours for part in ("gate_proj", "up_proj", "gate_up_proj"))
    num_norms = sum(part in name for name in ours for part in ("input_layernorm", "post_attention_layernorm"))
    has_product = any("down_proj" in name for name in ours)
    scaled = int(attention_inputs) + int(mlp_inputs) + num_norms
    upcast = 8 if e == 2 else 0
    """Norms work on an fp32 copy of their input, which is the input itself in fp32 training."""
    return n * (
        e * (3 + has_product) * I + e * (2 * query + 4 * key) + (upcast + e * scaled) * H + 4 * architecture.num_heads
    )


def loss_memory(model: TrainedModel, load: Workload) -> tuple[float, float]:
    """(kept for the backward pass, at most while the loss is computed), besides the activations.

    The gradient of hidden states and output embedding is computed with the loss, chunk by chunk: a chunk's logits and their
    logarithms in fp32 (soft-capped, the derivative of the cap and the logarithms), then their gradient in e; a trained
    embedding gathers its gradient in fp32.
    """
    architecture = model.architecture
    e, labelled = load.element_bytes, int(load.tokens * load.labelled_share)
    V, H = architecture.vocabulary, architecture.hidden
    c = min(load.loss_chunk, labelled)
    logits = 8 * c * V
    hidden = e * labelled * H
    if architecture.head_name not in model.trained:
        return hidden, 2 * hidden + logits
    weight = V * H
    in_chunks = max(logits, e * (weight + c * V))
    return hidden + e * weight, 2 * hidden + 4 * weight + max(in_chunks, e * weight)


def _persistent(model: TrainedModel) -> int:
    """Elements of all parameters that stage 3 leaves whole on every rank."""
    return sum(size for size in map(count, model.architecture.shapes.values()) if size < PERSISTENT_BELOW)
