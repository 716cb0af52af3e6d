"""Runs as their records tell of them, written without training: every end that a page or a screen must be right for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.runs import ledger
from launcher.runs.ledger import RunRecord
from trainer.run.run_folder import EventKind

START = 1_790_000_000.0
STEP_S = 2.0


def metric(step: int, at: float, attempt: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "step": step, "epoch": step / 100, "loss": 8.0 / (1 + step / 20), "lr": 1e-3 * (1 - step / 1000), "grad_norm": 1.0,
        "tokens": 4096, "seconds": STEP_S, "tokens_per_second": 2048.0, "data_wait_s": 0.01, "save_stall_s": 0.0,
        "attempt": attempt, "time": at,
    } | fields  # fmt: skip


def evaluation(step: int, at: float, **fields: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step / 100, "eval_loss": 7.0 / (1 + step / 25), "time": at} | fields


def event(kind: EventKind, at: float, attempt: int = 1, **fields: Any) -> dict[str, Any]:
    return {"time": at, "event": kind.value, "attempt": attempt} | fields


def preempted(stops: tuple[int, ...], total: int = 200, every: int = 25) -> tuple[list[Any], list[Any]]:
    """Events and metrics of a run whose node is taken without notice at each of `stops`: it goes on from the newest save, of
    which there is one in `every` steps, and ends."""
    events: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    at, step = START, 0
    for attempt, stop in enumerate((*stops, total), 1):
        events.append(event(EventKind.ATTEMPT_STARTED, at, attempt, nproc=8, device="cuda"))
        events.append(event(EventKind.PHASE, at + 1, attempt, phase="loading model"))
        if attempt == 1:
            events.append(
                event(EventKind.PLAN, at + 20, attempt, total_steps=total, tokens=819_200, parameters=8_030_000_000)
            )
        else:
            back = step // every * every
            events.append(
                event(EventKind.RESUMED, at + 30, attempt, step=back, total_steps=total, checkpoint=f"step-{back:08}", lost_steps=step - back)
            )  # fmt: skip
            step = back
        at += 60
        events.append(event(EventKind.PHASE, at, attempt, phase="training"))
        while step < stop:
            step, at = step + 1, at + STEP_S
            metrics.append(metric(step, at, attempt))
            if step % every == 0:
                events.append(event(EventKind.CHECKPOINT_SAVED, at, attempt, step=step, size_bytes=54e9, seconds=9.0))
                metrics.append(evaluation(step, at))
        if stop != total:
            events.append(
                event(EventKind.RESTARTING, at + 5, attempt, reason="the node was taken away", restarts=attempt)
            )
        at += 300
    events.append(event(EventKind.EXPORTED, at - 100, len(stops) + 1, model="/run/model", sample=None))
    events.append(event(EventKind.FINISHED, at - 90, len(stops) + 1, exit_code=0, reason=""))
    return events, metrics


def long(total: int) -> tuple[list[Any], Iterator[Any]]:
    """Of a run of many steps, made as they are read."""
    events = [
        event(EventKind.ATTEMPT_STARTED, START, nproc=8, device="cuda"),
        event(EventKind.PLAN, START + 20, total_steps=total),
        event(EventKind.PHASE, START + 60, phase="training"),
    ]
    return events, (
        metric(step, START + 60 + STEP_S * step, mfu=0.41, gpu_memory_bytes=40e9) for step in range(1, total + 1)
    )


def write(name: str, events: Any, metrics: Any, outcome: dict[str, Any] | None = None, **record: Any) -> RunRecord:
    """Into the ledger (DOLPHIN_HOME), as a run of this machine that is over."""
    made = ledger.create(ledger.new_id(name), name, "local", **record)
    made = replace(made, created_at=START - 30)
    files = made.files
    files.job.write_text(f"name: {name}\ntrain: {{learning_rate: 1.0e-3, epochs: 2}}\n")
    _lines(files.events, events)
    _lines(files.metrics, metrics)
    if outcome is not None:
        files.outcome.write_text(json.dumps(outcome))
    return made


def _lines(path: Path, lines: Any) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
