"""The lines that a run prints about its steps, written and recognised here, so that neither side changes alone. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["step", "evaluation"]

_STEP, _EVALUATION = "loss", "epoch"
"""What follows the step in a line of either kind."""
SHOWN_CHARACTERS = 90
"""Of a question and of an answer in the log; samples.jsonl has them whole."""
_LINE = re.compile(rf"\bstep (\d+)/\d+ · ({_STEP}|{_EVALUATION}) ")


def step_line(
    step: int, total_steps: int, loss: float, lr: float, grad_norm: float, tokens_per_s: float, pace_s: float
) -> str:
    """`step 840/3420 · loss 0.5814 · lr 4.1e-06 · grad 0.93 · 812 tokens/s · 3:12:07 left`

    Many parameters: each is a figure of the line.
    """
    speed = f"{tokens_per_s:,.0f}" if tokens_per_s >= 10 else f"{tokens_per_s:.1f}"
    left = clock(pace_s * max(0, total_steps - step))
    return (
        f"step {step}/{total_steps} · {_STEP} {loss:.4f} · lr {lr:.1e} · grad {grad_norm:.2f} · {speed} tokens/s · "
        f"{left} left"
    )


def evaluation_line(step: int, total_steps: int, epoch: float, measures: Mapping[str, float], *, is_best: bool) -> str:
    """`step 840/3420 · epoch 0.74 · validation loss 0.5671 · mine/loss 0.6012 · exact_match 0.25 · best so far`

    Of `measures` the losses and scores; perplexity, accuracy and entropy are in metrics.jsonl."""
    parts = [f"step {step}/{total_steps} · {_EVALUATION} {epoch:.2f}"]
    if "eval_loss" in measures:
        parts.append(f"validation loss {measures['eval_loss']:.4f}")
    parts += [f"{name} {value:.4f}" for name, value in measures.items() if name.endswith("/loss")][1:]
    parts += [f"{name} {value:.4g}" for name, value in measures.items() if "/" not in name and name[:5] != "eval_"]
    return " · ".join([*parts, *(["best so far"] if is_best else [])])


def sample_line(question: str, answer: str) -> str:
    """`  asked "What is a whale?", it answers "A mammal."`, each cut to a line."""
    return f'  asked "{_short(question)}", it answers "{_short(answer)}"'


def _short(text: str) -> str:
    return textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" ...")


def subject_of(line: str) -> tuple[int, Kind] | None:
    """The step that a line of the log is about, and of which kind the line is; None for any other line."""
    match = _LINE.search(line)
    return (int(match[1]), "step" if match[2] == _STEP else "evaluation") if match else None


def subject_of_record(record: dict[str, Any]) -> tuple[int, Kind]:
    """The same of a line of metrics.jsonl, which is written with it."""
    return record["step"], "step" if "loss" in record else "evaluation"


def clock(seconds: float) -> str:
    """`3:12:07`, or `12:07` under an hour."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
