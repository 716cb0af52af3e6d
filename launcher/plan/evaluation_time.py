"""Seconds of one evaluation: the losses of the validation sets, and the answers. Pure functions of sizes; no figure of it was
measured on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.jobfile.spec import JobSpec
from launcher.plan.data_facts import DataFacts, held_out_sequences
from launcher.plan.gpus import Card
from launcher.plan.throughput import LINK_EFFICIENCY, StepFlops
from launcher.units import GB

PROMPT_TOKENS = 200
"""Assumed of a question."""
FORWARD_S = 0.03
"""Assumed least time of a forward pass on a GPU, whose kernels are started one behind the other."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What forward passes cost on a machine."""

    step_s: float
    flops: StepFlops
    ranks: int
    card: Card | None
    gathered_bytes: float
    """Of parameters that ZeRO-3 gathers for a forward pass; 0 under the other stages."""

    @property
    def of_a_step_s(self) -> float:
        """The forward passes of a whole step."""
        return self.step_s * self.flops.forward / self.flops.total


def losses_s(job: JobSpec, data: DataFacts | None, cost: Pass, global_batch: int) -> float:
    """Forward passes over the held-out sequences."""
    return 0.0 if data is None else held_out_sequences(job.data, data) / global_batch * cost.of_a_step_s


def answers_s(job: JobSpec, num_prompts: int, cost: Pass, global_batch: int) -> float:
    """A forward pass over all that was said for each token of an answer: there is no cache of keys and values."""
    asked = num_prompts + (job.evaluate.num_questions if job.data.holds_out else 0)
    if not asked:
        return 0.0
    new, row = job.evaluate.max_new_tokens, job.data.sequence_length
    per_rank = math.ceil(asked / cost.ranks)
    length = min(PROMPT_TOKENS, row) + new
    at_once = min(per_rank, max(1, job.train.micro_batch * row // length))
    a_token_s = cost.of_a_step_s * cost.ranks / (global_batch * row)
    forward_s = at_once * (length - new / 2) * a_token_s
    if cost.card is not None:
        forward_s = max(forward_s, FORWARD_S)
        rate = cost.card.link_gb_per_s * GB * LINK_EFFICIENCY[cost.card.has_nvlink]
        forward_s += cost.gathered_bytes * (cost.ranks - 1) / cost.ranks / rate
    return math.ceil(per_rank / at_once) * new * forward_s
