"""One cell of bench/gpu.py: a train.json, the real supervisor on it, and what came of it as one record.

Owns what a cell's settings become, when its run is stopped (after its steps, without the save of many gigabytes that a run ends
with), and what is read from its metrics. Refuses to know which cells there are and how they are shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from bench import gpu_plan
from launcher.jobfile.settle import Placement, settle
from launcher.jobfile.spec import JobSpec
from trainer.run import python
from trainer.run.run_folder import EventKind, Phase, RunDir
from trainer.run.spec import NodeJob, TrainSpec
from trainer.supervise import rendezvous

ROOT = Path(__file__).parents[1]
TRL_FOLDER = "trl"
"""Where `make gpu` puts it, beside the inputs: it needs no other torch."""
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""What torchrun tells a single rank, which meets nobody: the address is used by none."""
POLL_S = 0.5
STOP_S = 60.0
"""How long a run may take to leave on its second signal, before it is killed."""
MEMORY_KEYS = ("peak_memory_bytes", "gpu_memory_peak_bytes", "peak_allocated_bytes", "gpu_memory_bytes", "memory_bytes")
"""What a line of metrics may call torch's peak of one rank, in bytes."""


class NotHere(Exception):
    """The cell asks for what this version, or this machine, has not; the message says what."""


class OutOfTime(Exception):
    """The budget is spent: the cell is left without a record, and is run first next time."""


@dataclass(frozen=True, slots=True)
class Cell:
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`group.key` -> value, besides those of the reference."""
    program: str = "dolphin"
    """`dolphin`, or `trl` for the same batches through TRL's SFTTrainer."""
    to_the_end: bool = False
    """Save once on the way, and end with the model folder."""
    again: int = 0
    """Another run of the same settings, which must not be taken for the first."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all cells have in common."""

    folder: Path
    """Inputs, prepared data and one run folder at a time."""
    spec: Mapping[str, Any]
    """The reference's TrainSpec, as plain values."""
    machine: gpu_plan.Machine
    warmup: int
    steps: int
    """Measured, behind `warmup` others."""
    facts: Mapping[str, Any]
    """facts.json of the inputs."""

    @property
    def total(self) -> int:
        return self.warmup + self.steps


def job_of(bench: Bench, cell: Cell) -> JobSpec:
    """Raises NotHere for a setting, or a value of one, that the specification does not know."""
    spec = json.loads(json.dumps(dict(bench.spec)))
    for name, value in cell.settings.items():
        group, key = name.split(".")
        fields = TrainSpec.model_fields[group].annotation.model_fields  # type: ignore[union-attr]
        if key not in fields:
            raise NotHere(f"not in this version: {name}")
        spec.setdefault(group, {})[key] = value
    if cell.to_the_end:
        spec["train"]["max_steps"] = bench.total
        spec["checkpoint"]["every"] = {"steps": bench.warmup + 1}
    try:
        return JobSpec.model_validate({**spec, "resources": bench.machine.resources})
    except ValidationError as error:
        stated = {tuple(name.split(".")) for name in cell.settings}
        where = [".".join(map(str, found["loc"][:2])) for found in error.errors() if tuple(found["loc"][:2]) in stated]
        if not where:
            raise
        raise NotHere(f"not in this version: {where[0]} {cell.settings[where[0]]}") from error


def key_of(bench: Bench, cell: Cell, job: JobSpec) -> str:
    """The same for the same work on the same kind of machine: what is not done twice. Paths count by their last part."""
    plain = job.model_dump(mode="json", exclude_defaults=True)
    plain["model"]["base"] = Path(job.model.base).name
    plain["data"]["sources"] = [Path(source.path).name for source in job.data.sources]
    what = [plain, cell.program, cell.again, bench.steps, bench.warmup, bench.machine.name, bench.facts["data"]]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def run(
    bench: Bench, cell: Cell, job: JobSpec, say: Callable[[str], None], deadline: float, *, try_all: bool = False
) -> dict[str, Any]:
    """The cell's record, whatever becomes of it. Raises OutOfTime at `deadline` (monotonic), with nothing left running."""
    folder = RunDir(bench.folder / "runs" / cell.name.replace(" ", "-").replace(",", ""))
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.path.mkdir(parents=True)
    plan = gpu_plan.of(job, bench.machine, bench.folder / "data_report.json")
    record: dict[str, Any] = {"plan": plan.record()}
    if plan.is_far_too_large() and not try_all:
        return record | {"state": "too large", "reason": plan.why_not()}
    place = Placement(str(folder.path), str(bench.folder / "cache"), bench.machine.ranks, bench.machine.device)
    node = settle(job, place, run_id=folder.path.name, zero=plan.stage)
    folder.train_json.write_text(node.model_dump_json(indent=1))
    record["stage"] = node.spec.train.zero
    watch = Watch(bench, folder, say)
    began = time.monotonic()
    try:
        with program(bench, cell, node, folder) as (command, environment), open(folder.log, "ab") as log:
            code = watch.follow(command, environment, log, None if cell.to_the_end else bench.total, deadline)
    finally:
        for path in (folder.checkpoints, folder.model):
            shutil.rmtree(path, ignore_errors=True)
    record |= measured(bench, folder, watch, plan) | {"cell_s": round(time.monotonic() - began, 1)}
    if len(watch.steps) >= bench.total and (not cell.to_the_end or code == 0):
        return record | {"state": "done"}
    return record | {"state": "failed", "reason": reason_of(folder, code, watch)}


@contextlib.contextmanager
def program(bench: Bench, cell: Cell, node: NodeJob, folder: RunDir) -> Iterator[tuple[list[str], dict[str, str]]]:
    """(command line, environment) of what the cell runs. Raises NotHere where TRL is not installed."""
    environment = python.environment(os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if node.device == "cpu" else {}))
    if cell.program == "dolphin":
        yield python.command("trainer.supervise", str(folder.train_json)), environment
        return
    beside = bench.folder.parent / TRL_FOLDER
    if not (beside / "trl").is_dir() and importlib.util.find_spec("trl") is None:
        raise NotHere(f"TRL is not installed: pip install --no-deps --target {beside} trl accelerate")
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(beside)])}
    subprocess.run(
        python.command("trainer.data.prepare", str(folder.train_json)),
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    module = ["bench.gpu_trl", str(folder.train_json), str(bench.total)]
    with rendezvous.private_folder() as meeting:
        environment |= rendezvous.ranks_environment(environment, meeting, "127.0.0.1")
        if node.nproc == 1:
            yield python.command(*module), environment | ALONE
        else:
            where = [*rendezvous.of_one_node(meeting, node.run_id), f"--nproc-per-node={node.nproc}"]
            yield python.command("torch.distributed.run", *where, "-m", *module), environment


class Watch:
    """Follows a run's metrics, and looks at its processes and GPUs meanwhile."""

    def __init__(self, bench: Bench, folder: RunDir, say: Callable[[str], None]) -> None:
        self._bench, self._folder, self._say = bench, folder, say
        self.steps: list[dict[str, Any]] = []
        self.rss: dict[int, int] = {}
        """Most resident bytes of each process, by its id."""
        self.gpus: list[gpu_plan.Seen] = []
        self.overran = False

    def follow(
        self, command: list[str], environment: dict[str, str], log: Any, until: int | None, deadline: float
    ) -> int:
        """Until the run ends, or has done `until` steps and is ended; its exit code. Raises OutOfTime."""
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, cwd=ROOT,
        )  # fmt: skip
        limit = time.monotonic() + self._bench.machine.cell_minutes * 60
        try:
            while process.poll() is None:
                self.look(process.pid)
                if until is not None and len(self.steps) >= until:
                    break
                if time.monotonic() > deadline:
                    raise OutOfTime
                if time.monotonic() > limit:
                    self.overran = True
                    break
                time.sleep(POLL_S)
        finally:
            leave(process)
        self.read()
        return process.returncode

    def look(self, pid: int) -> None:
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(pid)
            for each in (first, *first.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    self.rss[each.pid] = max(self.rss.get(each.pid, 0), each.memory_info().rss)
        self.gpus += gpu_plan.look()
        self.read()

    def read(self) -> None:
        steps = [line for line in self._folder.read_metrics() if "loss" in line]
        for line in steps[len(self.steps) :]:
            rate = line["tokens"] / line["seconds"]
            self._say(f"  step {line['step']}/{self._bench.total} · {line['seconds']:.2f} s · {rate:,.0f} tokens/s")
        self.steps = steps


def leave(process: subprocess.Popen[bytes]) -> None:
    """End a run at once: a second signal is dolphin's own way of saying so. Returns when none of its processes is left."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
        until = time.monotonic() + STOP_S
        while process.poll() is None and time.monotonic() < until:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        for each in children:
            with contextlib.suppress(psutil.Error):
                each.kill()
        psutil.wait_procs(children, timeout=STOP_S)
    if process.poll() is None:
        process.kill()
    process.wait()


def measured(bench: Bench, folder: RunDir, watch: Watch, plan: gpu_plan.Plan) -> dict[str, Any]:
    """What the steps behind the warm-up say; without the figures where there are none."""
    found: dict[str, Any] = {"losses": [line["loss"] for line in watch.steps[: bench.total]]}
    found["rss_bytes"] = max(watch.rss.values(), default=0)
    found |= gpu_plan.highest(watch.gpus) | phases(folder)
    saves = [event for event in folder.read_events() if event["event"] == EventKind.CHECKPOINT_SAVED]
    if saves:
        found["save"] = {key: saves[0].get(key) for key in ("size_bytes", "blocked_seconds", "seconds")}
    if (folder.path / "note.txt").exists():
        found["note"] = (folder.path / "note.txt").read_text()
    peaks = [line[name] for line in watch.steps for name in MEMORY_KEYS if line.get(name)]
    if peaks:
        found["peak_bytes"] = max(peaks)
    steps = watch.steps[bench.warmup : bench.total]
    if not steps:
        return found
    seconds = statistics.median(line["seconds"] for line in steps)
    found |= {
        "step_s": seconds, "tokens_per_s": sum(line["tokens"] for line in steps) / sum(line["seconds"] for line in steps),
        "tflops": plan.model_flops / seconds / bench.machine.ranks / 1e12, "warmup_s": sum(line["seconds"] for line in watch.steps[: bench.warmup]),
    }  # fmt: skip
    return found | {"mfu": found["tflops"] / plan.peak_tflops(bench.facts["matmul_tflops"])}


def phases(folder: RunDir) -> dict[str, float]:
    """Seconds from the start until training began, and of the export where there was one."""
    at: dict[str, float] = {}
    for event in folder.read_events():
        at.setdefault(event["phase"] if event["event"] == EventKind.PHASE else event["event"], event["time"])
    spans = {
        "start_s": (EventKind.ATTEMPT_STARTED, Phase.TRAINING),
        "export_s": (Phase.EXPORTING, EventKind.EXPORTED),
    }
    return {name: at[end] - at[begin] for name, (begin, end) in spans.items() if begin in at and end in at}


def reason_of(folder: RunDir, code: int, watch: Watch) -> str:
    """Why a cell has not its steps, in a line."""
    if watch.overran:
        return (
            f"took longer than the {watch._bench.machine.cell_minutes:g} minutes of a cell ({len(watch.steps)} steps)"
        )
    outcome = folder.read_outcome()
    if outcome is not None and outcome.get("reason"):
        return " ".join(str(outcome["reason"]).split())[:400]
    said = [line for line in folder.log.read_text(errors="replace").splitlines() if line.strip()]
    return f"exit code {code}: {' '.join((said or ['it said nothing'])[-1].split())[:300]}"
