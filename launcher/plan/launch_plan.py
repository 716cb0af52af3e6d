"""LaunchPlan: what a plan says, and Subject: what it is made of. Data only; `make` fills it, `view` shows it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.backends.base import Offer
from launcher.jobfile.spec import JobSpec
from launcher.models.adapters import without_adapters
from launcher.models.architecture import Architecture, TrainedModel
from launcher.plan import preemption
from launcher.plan.costs import Cost
from launcher.plan.data_facts import DataFacts
from launcher.plan.history import PastRun
from launcher.plan.host_memory import node_gib
from launcher.plan.throughput import StepFlops
from launcher.plan.zero_stage import Choice, StageOption
from trainer.run.optimizer_state import OPTIMIZER_STATES
from trainer.run.save_interval import preemptions_per_day
from trainer.run.work import Work


@dataclass(frozen=True, slots=True)
class Subject:
    """What a plan is made of, besides the offers."""

    job: JobSpec
    """With `train.unfrozen` resolved to patterns."""
    model: TrainedModel
    data: DataFacts | None = None
    """None where nothing is known of the data."""
    history: Sequence[PastRun] = ()
    """Newest first."""
    num_prompts: int = 0
    """Of `evaluate.prompts`."""

    @property
    def preemptions_per_day(self) -> float:
        """On spot: the job's own figure, moved by what earlier spot runs saw."""
        spot = [run for run in self.history if run.is_on_spot]
        stated = self.job.checkpoint.preemptions_per_day
        return preemptions_per_day(stated, sum(run.preemptions for run in spot), sum(run.observed_s for run in spot))

    @property
    def base(self) -> Architecture:
        """Of the model, without adapters."""
        return without_adapters(self.model.architecture)

    @property
    def checkpoint_bytes(self) -> int:
        return OPTIMIZER_STATES[self.job.train.optimizer].saved_bytes * self.model.num_trained


@dataclass(frozen=True, slots=True)
class Steps:
    global_batch: int
    micro_batches: int
    """Per step and GPU."""
    tokens_per_step: int
    per_epoch: int | None
    total: int | None
    """None where nothing is known of the data and no `max_steps` is set."""
    evaluations: tuple[int, ...]
    """Steps before which (0) or after which the validation loss is measured; at most the first and last few are shown."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Accelerators of one kind and number, and what the job is like on them."""

    accelerator: str | None
    count: int
    memory_bytes: int | None
    options: tuple[StageOption, ...]
    chosen: StageOption
    best: StageOption
    """What `zero: auto` takes."""
    micro_batches: int
    """Per step and GPU."""
    recompute_every: int
    """One layer in so many is recomputed; 0: none."""
    choices: tuple[Choice, ...]
    """Where the chosen stage does not fit: what would."""
    without_offload: StageOption | None
    """Where the job offloads its optimizer: what it would be like without, if that fits."""
    host: dict[str, int]
    """Bytes of host memory on one node, by part."""
    flops: StepFlops
    work: Work
    step_s: float | None
    speed_source: str
    save_s: float
    save_interval_s: float
    losses_s: float | None
    """Of one evaluation, the validation sets' losses; None where the speed is not known."""
    answers_s: float | None
    """Of one evaluation, what the model is asked."""

    @property
    def evaluation_s(self) -> float:
        return (self.losses_s or 0.0) + (self.answers_s or 0.0)

    @property
    def host_gib(self) -> int:
        """What a node must have."""
        return node_gib(self.host)


@dataclass(frozen=True, slots=True)
class Row:
    """One offer: hours and price of the whole run, from the tenth to the ninetieth of a hundred runs."""

    offer: Offer
    is_possible: bool
    why_not: str
    hours: preemption.Hours | None
    price_usd: tuple[float, float, float] | None
    """p10, mean, p90."""
    meets_deadline: bool | None
    work_h: float | None = None
    """Hours of steps, saves and evaluations alone, from the first step on, where nobody takes a machine away."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What a run needs to end in order, wherever it is: seconds."""

    save_s: float
    """Until a save is committed."""
    export_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """Hours from now, export included, and US dollars in all; of simulated runs where machines may be taken away."""

    deadline_h: float | None
    budget_usd: float | None
    how: str
    """`deadline` (spot and on demand, by the policy), `spot`, `on demand`."""
    hours: tuple[float, float]
    """Mean, p90."""
    usd: tuple[float, float]
    in_time: float | None
    """Share of the runs; None without a deadline."""
    in_budget: float | None
    why_not: str
    """Where it cannot be met at all: why; else empty."""
    not_enforced: str
    """Why nobody changes machines for the deadline once the run is on its way; empty where somebody does, or need not."""


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    name: str
    base: str
    architecture_source: str
    num_parameters: int
    num_trained: int
    data: DataFacts | None
    steps: Steps
    machines: tuple[Machine, ...]
    rows: tuple[Row, ...]
    owned: tuple[Row, ...]
    """Of this machine, at no price, where it has the GPUs that the job asks for: `launch --on` takes one of them."""
    cost: Cost | None
    """None where the run costs nothing, or its hours are not known."""
    checkpoint_bytes: int
    ending: Ending
    preemptions_per_day: float
    deadline_h: float | None
    notes: tuple[str, ...]
    outlook: Outlook | None = None
    """None without a deadline and a budget, or where hours are not known."""

    @property
    def machine(self) -> Machine:
        """That of the best row; the first where there is none."""
        return self.machines[0]

    @property
    def is_possible(self) -> bool:
        """Whether it fits somewhere."""
        return not self.rows or self.rows[0].is_possible

    def to_json(self) -> dict[str, Any]:
        """Plain values; infinite hours are null."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
