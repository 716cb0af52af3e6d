"""`dolphin data`: prepare a job's data without training, and show what became of it.

Owns the table and the colours. The preparation itself runs as a process of the trainer, because the launcher imports no
tokenizer; what it leaves in the cache, a later local launch finds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec
from launcher.plan.counting import laid_out
from launcher.plan.model_rules import rules_of
from launcher.runs.errors import BadUsage
from launcher.runs.states import EXIT_CODES, EndReason
from trainer.run import python
from trainer.run.exits import INTERRUPTED, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

_ENDS = {
    ExitCode.DONE: EndReason.DONE,
    ExitCode.BAD_INPUT: EndReason.BAD_SPECIFICATION,
    INTERRUPTED: EndReason.DETACHED,
    -signal.SIGINT: EndReason.DETACHED,
}
"""Exit code of the preparation -> how the command ends; any other is a failure."""


def formats_command(json_wanted: bool) -> int:
    """List the dataset formats."""
    from trainer.run.formats.registry import FORMATS

    if json_wanted:
        print(json.dumps([{"name": entry.name, "columns": entry.columns} for entry in FORMATS]))
        return 0
    from launcher.follow.screen import table

    table(("format", "columns"), [(entry.name, entry.columns) for entry in FORMATS], file=sys.stdout)
    return 0


def data_command(path: Path, overrides: Sequence[str], show: int, json_wanted: bool) -> int:
    """Prepare, print the table (standard error) or the report (`--json`, standard output), show conversations."""
    job = load_job(path, overrides)
    if find_spec("transformers") is None:
        raise BadUsage("dolphin data needs the trainer's packages: pip install 'dolphin-launcher[train]'")
    files, global_batch = laid_out(job)
    code, shown = _prepare(files.train_json, show)
    report = json.loads(files.data_report.read_text(encoding="utf-8")) if files.data_report.exists() else None
    if report is not None:
        _add_steps(report, global_batch)
        if json_wanted:
            print(json.dumps({**report, "shown": shown}, ensure_ascii=False))
        else:
            _print_report(report, files.data_report, job)
            _print_rules(job)
    if not json_wanted:
        _print_conversations(shown)
    return code


def _prepare(train_json: Path, show: int) -> tuple[int, list[dict[str, Any]]]:
    command = python.command("trainer.data.prepare", str(train_json), "--show", str(show))
    environment = python.environment(dict(os.environ))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        try:
            lines = process.stdout.read().split("\n")  # not splitlines: U+2028 stands inside a text
            code = process.wait()
        except KeyboardInterrupt:
            # The terminal interrupts both; the preparation cleans up behind itself.
            code, lines = process.wait(), []
    return EXIT_CODES[_ENDS.get(code, EndReason.FAILED)], [json.loads(line) for line in lines if line]


def _add_steps(report: dict[str, Any], global_batch: int) -> None:
    packed = report["totals"].get("packed_sequences")
    if packed is not None:
        report["totals"]["global_batch"] = global_batch
        report["totals"]["steps_per_epoch"] = -(-packed // global_batch)


def _print_report(report: dict[str, Any], path: Path, job: JobSpec) -> None:
    from launcher.follow.screen import table

    columns = ("source", "format", "rows", "train", "held out", "tokens", "trained", "answers end with", "median", "longest", "left out")  # fmt: skip
    rows = [
        (
            source["path"],
            source["format"],
            f"{source['rows']:,}",
            f"{source['train_conversations']:,}",
            f"{source['validation_conversations']:,}",
            f"{source['tokens']:,}",
            f"{source['trained_tokens']:,}",
            _ends(source["told"]),
            f"{source['median_tokens']:,}",
            f"{source['longest_tokens']:,}",
            _left_out(source, job.data.over_long),
        )
        for source in report["sources"]
    ]
    table(columns, rows, file=sys.stderr)
    totals = report["totals"]
    if "packed_sequences" in totals:
        print(
            f"{totals['tokens']:,} tokens an epoch ({totals['trained_tokens']:,} trained) in "
            f"{totals['packed_sequences']:,} sequences of {totals['sequence_length']:,}: "
            f"{totals['packing_efficiency']:.2%} full, {totals['steps_per_epoch']:,} steps an epoch at a global batch "
            f"of {totals['global_batch']:,}",
            file=sys.stderr,
        )
    for entry in totals.get("validation", ()):
        print(
            f"validation set {entry['name']}: {entry['conversations']:,} conversations, {entry['tokens']:,} tokens "
            f"({entry['trained_tokens']:,} with a loss) in {entry['packed_sequences']:,} sequences; none of them is trained on",
            file=sys.stderr,
        )
    print(f"report: {path}", file=sys.stderr)


def _print_rules(job: JobSpec) -> None:
    """What holds of the model; that it cannot be trained so is no fault of the data, and only said."""
    try:
        lines = rules_of(job, "cuda" if job.resources.gpu_name else "cpu")
    except BadUsage as refused:
        lines = [f"warning: {refused}"]
    for line in lines:
        print(line, file=sys.stderr)


def _ends(told: dict[str, Any]) -> str:
    """What ends the trained answers, and how many have no end."""
    ends = [f"{marker} ({count:,})" for marker, count in told["ends"].items()]
    return ", ".join(ends + ([f"nothing ({told['endless']:,})"] if told["endless"] else [])) or "-"


def _left_out(source: dict[str, Any], over_long: str) -> str:
    """Every reason with its count; nothing is dropped in silence."""
    reasons = {
        **source["bad"],
        "filtered": source["filtered"],
        "duplicate": source["duplicates"],
        "near-duplicate": source["near_duplicates"],
        "not sampled": source["unsampled"],
        "copy of a held-out one": source["copies_of_held_out"],
        "nothing trained": source["nothing_trained"],
        {"drop": "over-long", "truncate": "truncated", "split": "split"}[over_long]: source["over_long"],
        "tools moved into the system message": source["tools_in_system"],
        **source["changed"],
        **source["told"]["changed"],
        **{f"without the {what}": count for what, count in source["told"]["gone"].items()},
    }
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count) or "-"


def _print_conversations(shown: list[dict[str, Any]]) -> None:
    """Trained passages green, the others dim; without a terminal, trained ones between ⟦ and ⟧."""
    if not shown:
        return
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for record in shown:
        console.print(f"── {record['name']} · {record['tokens']:,} tokens ──", style="bold", markup=False)
        _print_passages(console, record["passages"])


def _print_passages(console: Console, passages: list[tuple[str, float]]) -> None:
    from rich.text import Text

    line = Text()
    for text, weight in passages:
        if not weight:
            line.append(text, style="dim")
        elif console.is_terminal:
            line.append(text, style="green" if weight == 1 else "yellow")
        else:
            line.append(f"⟦{text}⟧" if weight == 1 else f"⟦{weight:g}: {text}⟧")
    console.print(line)
