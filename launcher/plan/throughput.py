"""How long a step takes: FLOPs, bytes between GPUs, and seconds on a card. Pure functions of sizes.

Owns the counting. Refuses to know prices, preemptions and where measured figures come from: `history` hands those in.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.models.architecture import TrainedModel, count
from launcher.plan.gpus import Card
from launcher.units import GB
from trainer.run.optimizer_state import OPTIMIZER_STATES, OptimizerState
from trainer.run.recomputation import is_recomputed
from trainer.run.work import Work

LINK_EFFICIENCY = {True: 0.75, False: 0.5}
"""Share of a link's rate that NCCL's rings reach: NVLink (True; nccl-tests report 230 of 300 GB/s on 8 x A100, 360 of
450 on 8 x H100), and PCIe through the host (False; 12 to 18 of 31.5 GB/s on nodes without peer access)."""

OVERLAP = 0.5
"""Assumed share of the computation in whose shadow gradients and gathered parameters travel (`overlap_comm`)."""

BUS_EFFICIENCY = 0.6
"""Share of a GPU's PCIe link to its host that page-locked copies reach while the node's other GPUs copy too (12 to 25 of
31.5 GB/s)."""

GRADIENT_BYTES = 4
"""Of one element, as it is accumulated and updated from: fp32."""

UPDATE_GB_PER_S = 20.0
"""Assumed rate of that for each GPU of a node, whose ranks share its memory; two cores alone reach 37 with torch's fused
AdamW (bench/README.md)."""


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of one optimizer step over all GPUs, by what causes them."""

    forward: float
    recomputation: float
    activation_gradients: float
    weight_gradients: float
    attention: float
    """Scores and values, forward, backward and recomputed; the projections are in the parts above."""

    @property
    def total(self) -> float:
        return self.forward + self.recomputation + self.activation_gradients + self.weight_gradients + self.attention


def step_flops(
    model: TrainedModel,
    *,
    tokens: float,
    labelled: float,
    attention_span: float,
    gradient_checkpointing: int,
) -> StepFlops:
    """FLOPs of a step over `tokens` tokens of which `labelled` have a loss.

    A matrix of n parameters costs 2 n a token forward, 2 n for the gradient of its input, 2 n for its own. A frozen one
    has no gradient of its own; below the lowest trained parameter nothing is differentiated or recomputed at all. Of a
    mixture of experts a token meets a share (`Architecture.active`). One layer in `gradient_checkpointing` is recomputed.
    `attention_span` is the mean number of tokens of its conversation that precede a token (half the length of a row
    that is one conversation): scores and values cost 4 x span x heads x head size forward, 2.5 times that backward
    (flash attention recomputes the scores; Dao 2022).
    """
    architecture, trained = model.architecture, model.trained
    lowest = architecture.lowest_reached(trained)
    forward = recomputation = by_input = by_weight = attention = 0.0
    head = architecture.shapes[architecture.head_name]
    forward += 2.0 * count(head) * labelled
    by_input += 2.0 * count(head) * labelled
    if architecture.head_name in trained:
        by_weight += 2.0 * count(head) * labelled
    pairs = 4.0 * attention_span * architecture.num_heads * architecture.head_size * tokens
    for layer in range(architecture.num_layers):
        cost = {name: 2.0 * architecture.active(name) * tokens for name in architecture.layer_shapes(layer)}
        forward += sum(cost.values())
        attention += pairs
        if layer < lowest:
            continue
        by_input += sum(cost.values())
        by_weight += sum(value for name, value in cost.items() if name in trained)
        attention += 2.5 * pairs
        if is_recomputed(layer, gradient_checkpointing):
            recomputation += sum(cost.values())
            attention += pairs
    return StepFlops(forward, recomputation, by_input, by_weight, attention)


def work_of(model: TrainedModel, gradient_checkpointing: int, card: Card | None) -> Work:
    """`step_flops`, which is linear in tokens, labels and pairs, by its coefficients."""

    def total(tokens: float, labelled: float, span: float, again: int) -> float:
        return step_flops(
            model, tokens=tokens, labelled=labelled, attention_span=span, gradient_checkpointing=again
        ).total

    def of(again: int) -> tuple[float, float]:
        token = total(1, 0, 0, again)
        return token, total(1, 0, 1, again) - token

    (token, pair), (token_once, pair_once) = of(gradient_checkpointing), of(0)
    return Work(
        token_flops=token, label_flops=total(0, 1, 0, 0), pair_flops=pair, repeated_token_flops=token - token_once,
        repeated_pair_flops=pair - pair_once, peak_tflops=card.bf16_tflops if card else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one GPU sends per optimizer step."""

    hidden_bytes: float
    """Sent while gradients are computed, or while layers wait for their parameters."""
    exposed_bytes: float
    """Sent when nothing else can run: the updated parameters after the step."""
    shadow_share: float
    """Share of the step's computation that can hide the hidden part."""

    @property
    def total_bytes(self) -> float:
        return self.hidden_bytes + self.exposed_bytes


def step_traffic(
    *, stage: int, ranks: int, parameters: int, trained: int, micro_batches: int, bytes_per_element: int
) -> Traffic:
    """Bytes on the wire per GPU and step, as DeepSpeed 0.19 sends them with rings ((W - 1) / W of the data each way).

    Stage 0 and 1: the trained gradients once a step (all-reduce: twice the data), and for stage 1 the updated
    parameters; in bf16 with several micro batches the sum of stage 1 is fp32, and sent when the last is done. Stage 2: the gradients after every micro batch, as a partition cannot wait. Stage 3: every parameter
    before its forward and again before its backward, and a reduce-scatter of the gradients, in every micro batch.
    """
    if ranks == 1:
        return Traffic(0.0, 0.0, 0.0)
    share = (ranks - 1) / ranks * bytes_per_element
    if stage == 0:
        return Traffic(2 * trained * share, 0.0, 2 / 3 / micro_batches)
    if stage == 1 and micro_batches > 1 and bytes_per_element == 2:
        return Traffic(0.0, 2 * trained * share * GRADIENT_BYTES / bytes_per_element + trained * share, 0.0)
    if stage == 1:
        return Traffic(2 * trained * share, trained * share, 2 / 3 / micro_batches)
    if stage == 2:
        return Traffic(2 * trained * share * micro_batches, trained * share, 2 / 3)
    return Traffic((2 * parameters + trained) * share * micro_batches, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class OffloadCost:
    """What an optimizer, or activations, in host memory cost one rank in a step."""

    bus_bytes: float
    """Between the GPU and its host."""
    update_bytes: float
    """Read and written by the CPU."""

    def __add__(self, other: OffloadCost) -> OffloadCost:
        return OffloadCost(self.bus_bytes + other.bus_bytes, self.update_bytes + other.update_bytes)


def update_bytes(optimizer: OptimizerState) -> float:
    """Host memory traffic of one updated element beside the copy in low precision: clipping reads and writes the gradient,
    the update reads it with the whole state and writes the state, the copy reads the masters again. 40 for AdamW."""
    return 3 * GRADIENT_BYTES + 2 * optimizer.held_bytes + optimizer.master.held_bytes


def offload_cost(
    *, stage: int, ranks: int, trained: int, micro_batches: int, bytes_per_element: int,
    optimizer: OptimizerState = OPTIMIZER_STATES["adamw"],
) -> OffloadCost:  # fmt: skip
    """As DeepSpeed 0.19 does it, for this rank's partition of the `trained` parameters.

    Stages 1 and 2 send the gradients down in fp32 once and the updated parameters up. Stage 3 keeps the accumulated
    gradients on the host: down after the first micro batch, up and down again after every other, and once more at the end.
    Stage 2 in fp32 accumulates there too.
    """
    partition = trained / ranks
    accumulated = (
        GRADIENT_BYTES * (2 * micro_batches - 1) if stage == 3 or (stage == 2 and bytes_per_element == 4) else 0
    )
    return OffloadCost(
        (accumulated + GRADIENT_BYTES + bytes_per_element) * partition,
        (update_bytes(optimizer) + bytes_per_element) * partition,
    )


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimizer step."""

    compute_s: float
    communication_s: float
    """What is left of it in nobody's shadow."""
    offload_s: float = 0.0
    """Copies to and from the host, and the update there; none of it is taken to be hidden."""
    unpacking_s: float = 0.0
    """Making whole weights of those that are held in 4 bits."""

    @property
    def total_s(self) -> float:
        return self.compute_s + self.communication_s + self.offload_s + self.unpacking_s


def unpacking_s(model: TrainedModel, card: Card, micro_batches: int, element_bytes: float, every: int) -> float:
    """Seconds a step in which one card reads 4-bit weights and writes them whole, `element_bytes` a weight for both, at the full
    rate of its memory: what it takes at least. A weight is unpacked for the product forward, for that of the input's gradient
    (QLoRA, arXiv 2305.14314, section 3), and once more in a layer that is recomputed (one in `every`; 0: none)."""
    layers = range(model.architecture.num_layers)
    passes = 2 + sum(is_recomputed(layer, every) for layer in layers) / len(layers)
    return micro_batches * passes * model.num_quantised * element_bytes / (card.memory_gb_per_s * GB)


def step_time(
    flops: StepFlops, traffic: Traffic, card: Card, ranks: int, utilisation: float | None = None,
    offload: OffloadCost | None = None,
) -> StepTime:  # fmt: skip
    """On `ranks` cards, at the card's assumed utilisation or the one given."""
    compute = flops.total / (ranks * card.bf16_tflops * 1e12 * (utilisation or card.utilisation))
    rate = card.link_gb_per_s * GB * LINK_EFFICIENCY[card.has_nvlink]
    hidden = max(0.0, traffic.hidden_bytes / rate - OVERLAP * traffic.shadow_share * compute)
    offload_s = 0.0
    if offload is not None:
        offload_s = offload.bus_bytes / (card.host_gb_per_s * GB * BUS_EFFICIENCY)
        offload_s += offload.update_bytes / (UPDATE_GB_PER_S * GB)
    return StepTime(compute, hidden + traffic.exposed_bytes / rate, offload_s=offload_s)
