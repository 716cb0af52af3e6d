"""Every setting that moves speed or memory on GPUs, a cell each, by the real supervisor: `make gpu` on a bare GPU machine.

    python -m bench.gpu [--scaled] [--cells NAME,NAME] [--budget-minutes 55] [--out FOLDER]

An 8B of random weights with the reference job's patterns, packed at 8,192; with --scaled a tiny one on CPU ranks. Results are
a line each in FOLDER/gpu.jsonl, and FOLDER/gpu.md shows them: a cell that is done is not run again, one that failed says why
and costs no other, and at the end of the budget (or at Ctrl-C) the same command goes on another time.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import gpu_plan, gpu_report
from bench.gpu_cell import Bench, Cell, NotHere, OutOfTime, job_of, key_of, run
from launcher.jobfile.load import load_job
from launcher.models.architecture import find_architecture
from trainer.run import python
from trainer.run.exits import INTERRUPTED
from trainer.run.patterns import match
from trainer.run.run_folder import append_line, read_lines
from trainer.run.spec import NodeJob

ROOT = Path(__file__).parents[1]
REFERENCE_JOB = ROOT / "examples" / "dolphin-2.9.4-llama3.1-8b.yaml"
BATCH_PER_RANK = 8
"""Packed sequences a step: 8, 4 or 2 micro batches of 1, 2 or 4."""
CELLS = (
    Cell("reference"),
    Cell("trl", program="trl"),
    Cell("kernels off", {"train.kernels": False}),
    Cell("kernels on", {"train.kernels": True}),
    Cell("compile off", {"train.compile": False}),
    Cell("compile on", {"train.compile": True}),
    Cell("kernels and compile off", {"train.kernels": False, "train.compile": False}),
    Cell("micro batch 1", {"train.micro_batch": 1}),
    Cell("micro batch 4", {"train.micro_batch": 4}),
    Cell("zero 1", {"train.zero": 1}),
    Cell("zero 2", {"train.zero": 2}),
    Cell("zero 3", {"train.zero": 3}),
    Cell("deterministic", {"train.deterministic": True}),
    Cell("deterministic again", {"train.deterministic": True}, again=1),
    Cell("reference again", again=1),
    Cell("recompute nothing", {"train.gradient_checkpointing": False}),
    Cell("recompute every second layer", {"train.gradient_checkpointing": {"every": 2}}),
    Cell("recompute auto", {"train.gradient_checkpointing": "auto"}),
    Cell("adamw_8bit", {"train.optimizer": "adamw_8bit"}),
    Cell("muon", {"train.optimizer": "muon"}),
    Cell("fp8", {"train.precision": "fp8"}),
    Cell("optimizer on the host", {"train.offload": "optimizer"}),
    Cell("varlen", {"model.attention": "varlen"}),
    Cell("sdpa", {"model.attention": "sdpa"}),
    Cell("to its end", to_the_end=True),
)
"""The most telling first: a budget ends somewhere."""


def main() -> int:
    options = parse()
    out, work = options.out, options.work
    out.mkdir(parents=True, exist_ok=True)
    machine = gpu_plan.here(options.ranks, options.scaled or options.cpu, options.cell_minutes)
    began = time.monotonic()
    deadline = began + options.budget_minutes * 60
    say(f"{machine.name}, driver {machine.driver}; results in {out}/gpu.jsonl and {out}/gpu.md")
    bench = prepared(options, machine, work)
    results = out / "gpu.jsonl"
    named = {cell.name: cell for cell in CELLS}
    chosen = [named[name] for name in options.cells or named]
    try:
        for index, cell in enumerate(chosen):
            left = deadline - time.monotonic()
            usual = typical(results)
            if left < (usual or 0.0) or left <= 0:
                say(
                    f"the budget of {options.budget_minutes:g} minutes ends here: {len(chosen) - index} cells left; the same command goes on"
                )
                break
            rest = f", {clock(left)} of the budget left" if left < float("inf") else ""
            to_go = f", about {clock((len(chosen) - index) * usual)} to go" if usual else ""
            say(f"cell {index + 1}/{len(chosen)} {cell.name} · {clock(time.monotonic() - began)} gone{to_go}{rest}")
            record = result_of(bench, cell, results, deadline, options)
            say(f"  {record['state']}: {gpu_report.in_a_line(record)}")
            gpu_report.write(results, out / "gpu.md", options.tests)
    except OutOfTime:
        say(f"the budget of {options.budget_minutes:g} minutes ended within a cell, which is left for the next time")
    except KeyboardInterrupt:
        say("interrupted: what is done is written; the same command goes on")
        return INTERRUPTED
    finally:
        gpu_report.write(results, out / "gpu.md", options.tests)
    return 0


def result_of(bench: Bench, cell: Cell, results: Path, deadline: float, options: argparse.Namespace) -> dict[str, Any]:
    """The cell's record: the one that is there, or a new one, which is written."""
    record: dict[str, Any] = {"cell": cell.name, "when": datetime.datetime.now().isoformat(timespec="seconds")}
    record |= {"machine": bench.machine.name, "memory_mib": bench.machine.memory_mib, "driver": bench.machine.driver}
    record |= {"commit": commit(), "facts": dict(bench.facts), "scaled": options.scaled, "work": described(bench)}
    try:
        job = job_of(bench, cell)
        key = key_of(bench, cell, job)
        known = [line for line in read_lines(results) if line.get("key") == key]
        is_done = known and not options.again and (known[-1]["state"] == "done" or not options.retry)
        if is_done:
            found = known[-1]
            if found["cell"] != cell.name:  # the same settings under another name
                append_line(results, {**found, "cell": cell.name})
            return found
        record["key"] = key
        record |= run(bench, cell, job, say, deadline, try_all=options.try_all)
    except NotHere as missing:
        record |= {"state": "not here", "reason": str(missing)}
    except (OutOfTime, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever a cell fails with, the others are worth having
        record |= {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:400]}
    append_line(results, record)
    return record


def prepared(options: argparse.Namespace, machine: gpu_plan.Machine, work: Path) -> Bench:
    """The inputs and the prepared data, made where they are not there, and the reference that fits on this machine."""
    length = 128 if options.scaled else 8192
    batch = BATCH_PER_RANK * machine.ranks
    inputs = work / ("scaled" if options.scaled else "8b")
    total = options.warmup + options.steps
    call("bench.gpu_inputs", inputs, "--tokens", total * batch * length, *(["--scaled"] if options.scaled else []))
    facts = json.loads((inputs / "facts.json").read_text())
    spec = reference(inputs, length, batch)
    bench = Bench(inputs, spec, machine, options.warmup, options.steps, facts)
    data = NodeJob.model_validate(
        {"run_id": "data", "run_dir": str(inputs), "cache_dir": str(inputs / "cache"), "nproc": machine.ranks,
         "device": machine.device, "spec": {**spec, "train": {**spec["train"], "zero": 0}}}
    )  # fmt: skip
    (inputs / "train.json").write_text(data.model_dump_json())
    call("trainer.data.prepare", inputs / "train.json")
    plan = gpu_plan.of(job_of(bench, Cell("reference")), machine, inputs / "data_report.json")
    if plan.whole.machine.chosen.fits is False and spec["train"].get("offload", "none") == "none":
        say(f"the reference keeps its optimizer on the host here: {plan.why_not().partition(';')[0]}")
        spec["train"]["offload"] = "optimizer"
    return dataclasses.replace(bench, spec=spec)


def reference(inputs: Path, length: int, batch: int) -> dict[str, Any]:
    """The reference job's patterns and settings, over the inputs; never evaluated and never saved."""
    job = load_job(REFERENCE_JOB)
    patterns = job.train.unfrozen
    assert isinstance(patterns, tuple)
    names = find_architecture(str(inputs / "base")).shapes
    missed = match(patterns, names).missed  # layers that a scaled model has not
    return {
        "name": "bench-gpu",
        "model": {"base": str(inputs / "base"), "chat_template": "chatml"},
        "data": {
            "sources": [{"path": str(inputs / "data.jsonl")}], "sequence_length": length, "validation_fraction": 0.0,
        },
        "train": {
            "max_steps": 100_000, "micro_batch": 2, "global_batch": batch, "learning_rate": job.train.learning_rate,
            "weight_decay": job.train.weight_decay, "schedule": "constant", "gradient_checkpointing": True,
            "evaluate_every": "never", "evaluate_at_start": False,
            "unfrozen": [pattern for pattern in patterns if pattern not in missed],
        },
        "checkpoint": {"every": {"steps": 100_000}, "max_restarts": 0},
    }  # fmt: skip


def described(bench: Bench) -> str:
    data, train = bench.spec["data"], bench.spec["train"]
    offload = ", optimizer on the host" if train.get("offload") == "optimizer" else ""
    return (
        f"{Path(bench.folder).name}, sequences of {data['sequence_length']:,}, {train['global_batch']} a step, micro batch "
        f"{train['micro_batch']}, recomputation of every layer{offload}; {bench.warmup} steps to warm up, {bench.steps} measured"
    )


def typical(results: Path) -> float | None:
    """Seconds of a cell that was run."""
    found = [line["cell_s"] for line in read_lines(results) if "cell_s" in line]
    return statistics.median(found) if found else None


def call(module: str, *arguments: object) -> None:
    """A module of ours in a process of its own. Raises CalledProcessError."""
    environment = python.environment(dict(os.environ)) | {"PYTHONPATH": str(ROOT)}
    subprocess.run(python.command(module, *map(str, arguments)), check=True, cwd=ROOT, env=environment)


def commit() -> str:
    git = shutil.which("git")
    found = (
        subprocess.run([git, "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        if git
        else None
    )
    return found.stdout.strip() if found else ""


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def say(line: str) -> None:
    print(line, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scaled", action="store_true", help="a tiny model on CPU ranks: does all of it run?")
    parser.add_argument("--cpu", action="store_true", help="CPU ranks whatever there is")
    parser.add_argument("--ranks", type=int, help="GPUs, or CPU ranks (1); all GPUs where not given")
    parser.add_argument(
        "--cells", type=lambda text: tuple(text.split(",")), help=f"of: {', '.join(c.name for c in CELLS)}"
    )
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="stop in order after so long")
    parser.add_argument("--cell-minutes", type=float, default=12.0, help="a cell that takes longer has failed")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that are measured")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--out", type=Path, help="where gpu.jsonl and gpu.md go: bench/, or build/bench/ with --scaled")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "bench", help="inputs and run folders (20 GB and more)"
    )
    parser.add_argument("--tests", type=Path, help="pytest's --junitxml of tests/gpu, shown in gpu.md")
    parser.add_argument("--retry", action="store_true", help="run cells again that failed")
    parser.add_argument("--again", action="store_true", help="run every cell again")
    parser.add_argument("--try-all", action="store_true", help="also what the plan says is far too large for the card")
    options = parser.parse_args()
    unknown = [name for name in options.cells or () if name not in {cell.name for cell in CELLS}]
    if unknown:
        parser.error(f"no cell {unknown[0]!r}; --help lists them")
    options.out = (options.out or (options.work if options.scaled else ROOT / "bench")).absolute()
    options.work = options.work.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
