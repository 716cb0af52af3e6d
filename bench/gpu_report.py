"""bench/gpu.md from the lines of gpu.jsonl: a section a machine, a row a cell, the newest line of each. Measures nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer.run.run_folder import read_lines, write_atomic

Record = dict[str, Any]
HEAD = """# What a GPU shows

`make gpu` wrote this: tests/gpu, then `bench/gpu.py`, which runs the real supervisor on a train.json for each cell and ends the
run after its measured steps. Medians of those steps. Memory: torch's peak of one rank where the trainer tells it, else what
nvidia-smi shows of the fullest card. "Plan" is what `dolphin plan` says before anything is run. MFU: the plan's FLOPs of a step
without what is recomputed, over the card's peak (its data sheet's bf16; fp8 cells by the same figure).
"""
COLUMNS = ("cell", "s a step", "plan", "off", "tokens/s", "TFLOP/s", "MFU", "memory", "plan", "off", "W", "start")


def write(results: Path, target: Path, tests: Path | None) -> None:
    records = list(read_lines(results))
    machines = list(dict.fromkeys(_machine(record) for record in records))
    parts = [HEAD, *([_tests(tests)] if tests and tests.exists() else [])]
    parts += [_section(name, [record for record in records if _machine(record) == name]) for name in machines]
    write_atomic(target, "\n".join(parts))


def in_a_line(record: Record) -> str:
    if record["state"] != "done":
        return str(record["reason"])
    return (
        f"{record['step_s']:.2f} s a step, {record['tokens_per_s']:,.0f} tokens/s, {record['tflops']:.3g} TFLOP/s a rank, MFU "
        f"{record['mfu']:.1%}, memory {_memory(record)[0]} (plan {_memory(record)[1]})"
    )


def _machine(record: Record) -> str:
    return f"{record['machine']}{', scaled' if record['scaled'] else ''}"


def _section(name: str, records: list[Record]) -> str:
    newest = {record["cell"]: record for record in records}
    last = records[-1]
    dates = sorted(record["when"][:10] for record in newest.values())
    memory = f" of {last['memory_mib']:,} MiB" if last["memory_mib"] else ""
    versions = ", ".join(f"{package} {version}" for package, version in last["facts"]["versions"].items())
    lines = [
        f"## {name}{memory}", "",
        f"{dates[0]}{'' if dates[0] == dates[-1] else f' to {dates[-1]}'}; driver {last['driver']}; {versions}; commit "
        f"{', '.join(dict.fromkeys(record['commit'] for record in newest.values()))}.",
        f"{last['work']}. Data: {last['facts']['data']}. A large bf16 matrix product reaches {last['facts']['matmul_tflops']:.3g} TFLOP/s here.",
        "", f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1),
    ]  # fmt: skip
    lines += [_row(record) for record in newest.values() if record["state"] == "done"]
    others = [record for record in newest.values() if record["state"] != "done"]
    if others:
        lines += ["", "| cell | what became of it | why |", "|---|---|---|"]
        lines += [f"| {r['cell']} | {r['state']} | {str(r['reason']).replace('|', '/')} |" for r in others]
    return "\n".join([*lines, "", *_losses(newest), *_end(newest)])


def _row(record: Record) -> str:
    step, planned = record["step_s"], record["plan"]["step_s"]
    memory, plan, off = _memory(record)
    seconds = (f"{planned:.2f}", f"{step / planned - 1:+.0%}") if planned else ("", "")
    stage = f" (ZeRO-{record['stage']}{'; ' + record['note'] if record.get('note') else ''})"
    values = [
        record["cell"] + stage, f"{step:.2f}", *seconds, f"{record['tokens_per_s']:,.0f}", f"{record['tflops']:.3g}",
        f"{record['mfu']:.1%}", memory, plan, off, f"{record.get('power_w') or 0:.0f}", f"{record.get('start_s') or 0:.0f} s",
    ]  # fmt: skip
    return f"| {' | '.join(values)} |"


def _memory(record: Record) -> tuple[str, str, str]:
    """(measured, planned, difference): torch's own, else the card's, else a CPU rank's resident memory, which no plan covers."""
    plan = record["plan"]
    for key, planned in (("peak_bytes", plan["allocated_bytes"]), ("card_bytes", plan["total_bytes"])):
        if record.get(key):
            what = "" if key == "peak_bytes" else " (card)"
            return f"{record[key] / 1e9:.1f} GB{what}", f"{planned / 1e9:.1f} GB", f"{record[key] / planned - 1:+.1%}"
    return f"{record['rss_bytes'] / 1e9:.2f} GB resident", f"{plan['allocated_bytes'] / 1e9:.2f} GB", ""


def _losses(newest: dict[str, Record]) -> list[str]:
    """The loss of each step, where runs should agree or differ by a precision alone."""
    asked = ("reference", "reference again", "deterministic", "deterministic again", "fp8", "trl", "adamw_8bit")
    shown = [newest[cell] for cell in asked if cell in newest and newest[cell].get("losses")]
    if not shown:
        return []
    lines = ["Losses, step by step:", ""]
    lines += [f"    {record['cell']:<20} {' '.join(f'{loss:.5f}' for loss in record['losses'])}" for record in shown]
    for one, two in (("reference", "reference again"), ("deterministic", "deterministic again")):
        if all(cell in newest and newest[cell]["state"] == "done" for cell in (one, two)):
            same = newest[one]["losses"] == newest[two]["losses"]
            lines += ["", f"{one} and {two}: {'the same to the last bit' if same else 'not the same bits'}."]
    return [*lines, ""]


def _end(newest: dict[str, Record]) -> list[str]:
    record = newest.get("to its end", {})
    if record.get("state") != "done":
        return []
    save, found = record.get("save"), [f"export {record.get('export_s') or 0:.1f} s"]
    if save:
        found.insert(
            0,
            f"a save of {save['size_bytes'] / 1e9:.1f} GB held training up for {save['blocked_seconds']:.3f} s, written in {save['seconds']:.1f} s",
        )
    return [f"To its end: {'; '.join(found)}.", ""]


def _tests(path: Path) -> str:
    """What came of tests/gpu, from pytest's own report."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    lines = [f"tests/gpu: {passed} passed, {len(failed)} failed, {len(skipped)} skipped.", ""]
    lines += [f"- failed: {_name(case)}: {_why(case, ('failure', 'error'))}" for case in failed]
    lines += [f"- skipped: {_name(case)}: {_why(case, ('skipped',))}" for case in skipped]
    return "\n".join([*lines, ""])


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"


def _why(case: ElementTree.Element, kinds: Iterable[str]) -> str:
    found = next(part for kind in kinds if (part := case.find(kind)) is not None)
    return " ".join((found.get("message") or found.text or "").split())[:300]
