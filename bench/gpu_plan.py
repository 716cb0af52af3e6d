"""What dolphin's plan says of a cell, and what nvidia-smi says of the cards. Counts nothing itself."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.backends.base import Offer
from launcher.backends.home import machine as home
from launcher.jobfile.spec import JobSpec
from launcher.models.architecture import TrainedModel, find_architecture
from launcher.plan.data_facts import from_report
from launcher.plan.gpus import find_card
from launcher.plan.launch_plan import LaunchPlan, Subject
from launcher.plan.make import make_plan
from launcher.units import MIB, gigabytes

FAR = 1.10
"""A plan that asks for this multiple of a card's memory is believed; below it the cell is tried."""
AROUND = ("CUDA and NCCL", "fragmentation")
"""Parts of the plan that torch's own peak does not have."""


@dataclass(frozen=True, slots=True)
class Machine:
    device: Literal["cuda", "cpu"]
    card: str | None
    """As nvidia-smi names it."""
    memory_mib: int | None
    ranks: int
    driver: str
    cell_minutes: float
    """A cell that takes longer has failed."""

    @property
    def name(self) -> str:
        return f"{self.ranks} x {self.card or 'CPU rank'}"

    @property
    def resources(self) -> dict[str, Any]:
        if self.card is None:
            return {"ranks_per_node": self.ranks}
        known = find_card(self.card)
        return {"accelerators": f"{known.name if known else 'GPU'}:{self.ranks}"}

    @property
    def offer(self) -> Offer:
        return Offer("local", "local", self.card, self.ranks, accelerator_memory_mib=self.memory_mib)


def here(ranks: int | None, on_cpu: bool, cell_minutes: float) -> Machine:
    """This machine, all its GPUs or the first `ranks`."""
    gpus = [] if on_cpu else home.local_gpus()
    if not gpus:
        return Machine("cpu", None, None, ranks or 1, "none", cell_minutes)
    name, memory_mib = gpus[0]
    return Machine("cuda", name, memory_mib, ranks or len(gpus), driver(), cell_minutes)


@dataclass(frozen=True, slots=True)
class Plan:
    whole: LaunchPlan
    model_flops: float
    """Of a step, what recomputation repeats left out: the numerator of MFU."""

    @property
    def stage(self) -> int:
        return self.whole.machine.chosen.stage

    @property
    def allocated(self) -> int:
        """What torch should have at its peak."""
        parts = self.whole.machine.chosen.memory.parts
        return sum(size for part, size in parts.items() if part not in AROUND)

    def is_far_too_large(self) -> bool:
        memory = self.whole.machine.memory_bytes
        return memory is not None and self.whole.machine.chosen.memory.total > FAR * memory

    def why_not(self) -> str:
        machine = self.whole.machine
        total = gigabytes(machine.chosen.memory.total)
        return f"the plan says {total} of {gigabytes(machine.memory_bytes or 0)}; not run (--try-all runs it)"

    def peak_tflops(self, measured: float) -> float:
        """Of one GPU: its data sheet's, else the rate of a large matrix product that was measured."""
        card = find_card(self.whole.machine.accelerator or "")
        return card.bf16_tflops if card else measured

    def record(self) -> dict[str, Any]:
        chosen = self.whole.machine.chosen
        return {
            "stage": self.stage, "total_bytes": chosen.memory.total, "allocated_bytes": self.allocated,
            "moment": chosen.memory.moment, "step_s": chosen.time.total_s if chosen.time else None,
            "model_flops": self.model_flops, "fits": chosen.fits,
        }  # fmt: skip


def of(job: JobSpec, machine: Machine, report: Path) -> Plan:
    """The plan of a job whose data was prepared, on this machine, from nothing that earlier runs measured."""
    architecture = find_architecture(job.model.base)
    patterns = job.train.unfrozen
    assert patterns is None or isinstance(patterns, tuple)
    model = TrainedModel.by_patterns(architecture, patterns)
    data = from_report(report, job.data.sequence_length)
    plain = job.model_copy(update={"train": job.train.model_copy(update={"gradient_checkpointing": False})})
    whole, once = (make_plan(Subject(each, model, data), [machine.offer]) for each in (job, plain))
    return Plan(whole, once.machine.flops.total)


@dataclass(frozen=True, slots=True)
class Seen:
    """A GPU as nvidia-smi shows it."""

    used_mib: float
    power_w: float
    celsius: float


def look() -> list[Seen]:
    """Every GPU now; none where there is no nvidia-smi, or it does not answer."""
    return [Seen(*map(_number, row)) for row in _query("memory.used,power.draw,temperature.gpu", 3)]


def highest(seen: Sequence[Seen]) -> dict[str, float]:
    if not seen:
        return {}
    top = Seen(*(max(values) for values in zip(*map(dataclasses.astuple, seen), strict=True)))
    return {"card_bytes": top.used_mib * MIB, "power_w": top.power_w, "celsius": top.celsius}


def driver() -> str:
    rows = _query("driver_version", 1)
    return rows[0][0] if rows else "none"


def _number(text: str) -> float:
    """0 for what a card does not tell: `[N/A]`."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _query(what: str, columns: int) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[value.strip() for value in line.split(",")] for line in answer.stdout.splitlines()]
    return [row for row in rows if len(row) == columns] if answer.returncode == 0 else []
