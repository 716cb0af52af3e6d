"""`dolphin samples`: what a run's model answered at each evaluation, question by question, the steps side by side. Reads alone."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from launcher.backends.base import get_backend
from launcher.follow.readers import JsonLines
from launcher.runs.errors import BadUsage
from launcher.runs.ledger import RunRecord
from trainer.run.run_folder import SAMPLES_FILE

WIDTH, INDENT = 110, 12


def samples_command(record: RunRecord, steps: int, json_wanted: bool) -> int:
    """Print the answers of the first, the last and `steps` - 2 evaluations between; all of them as JSON. Returns the exit code."""
    found = by_question(JsonLines(get_backend(record.backend), record, SAMPLES_FILE).read())
    if json_wanted:
        print(json.dumps([answer for answers in found.values() for answer in answers.values()], ensure_ascii=False))
        return 0
    if not found:
        raise BadUsage(
            f"{record.run_id} has answered nothing yet; a job asks with evaluate.prompts or evaluate.questions"
        )
    everywhere = sorted({step for answers in found.values() for step in answers})
    shown = spread(everywhere, steps)
    for number, answers in sorted(found.items()):
        first = next(iter(answers.values()))
        _say(f"{number + 1} · {first.get('set')}", str(first.get("question", "")))
        if isinstance(first.get("expected"), str):
            _say("expected", first["expected"])
        for step in shown:
            if step in answers:
                _say(f"step {step}", str(answers[step].get("answer", "")) + _scores(answers[step]))
        print()
    if len(shown) < len(everywhere):
        print(
            f"{len(everywhere) - len(shown)} evaluations between are not shown; --steps N shows more", file=sys.stderr
        )
    return 0


def by_question(lines: Iterable[dict[str, Any]]) -> dict[int, dict[int, dict[str, Any]]]:
    """Number of a question -> step -> its line; of one that was asked again after a resume, the last. What is no such line is
    passed over."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for line in lines:
        if isinstance(line.get("number"), int) and isinstance(line.get("step"), int):
            found.setdefault(line["number"], {})[line["step"]] = line
    return {number: dict(sorted(answers.items())) for number, answers in found.items()}


def spread(steps: list[int], count: int) -> list[int]:
    """So many of the steps, the first and the last among them, evenly apart."""
    if len(steps) <= count:
        return steps
    if count == 1:
        return steps[-1:]
    return [steps[round(place * (len(steps) - 1) / (count - 1))] for place in range(count)]


def _say(label: str, text: str) -> None:
    words = textwrap.shorten(text, 4 * WIDTH, placeholder=" ...") or "(nothing)"
    print(textwrap.fill(words, WIDTH, initial_indent=f"{label:<{INDENT}}", subsequent_indent=" " * INDENT))


def _scores(answer: dict[str, Any]) -> str:
    scores = answer.get("scores")
    if not isinstance(scores, dict) or not scores:
        return ""
    return (
        "  [" + ", ".join(f"{name} {value:g}" for name, value in scores.items() if isinstance(value, float | int)) + "]"
    )
