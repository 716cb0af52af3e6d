"""Scores of answers: dolphin's own, and functions of the user's, which may raise what they like: that is a warning. On rank 0."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.run.measures import function_of, score_name

Score = Callable[[str, str, str | None], Any]
"""(question, answer, expected) -> a number, true or false; None where it says nothing of this answer."""
NAME_KEYS, ARGUMENT_KEYS = ("name",), ("arguments", "parameters")


class Scorer:
    """The scores of `evaluate.metrics`. A function of the user's that raises is warned of once for each error."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self._warned: set[str] = set()
        self._scores: dict[str, Score] = {}
        for metric in metrics:
            named = function_of(metric)
            score = OWN[metric] if named is None else self._loaded(Path(named[0]), named[1])
            if score is not None:
                self._scores[score_name(metric)] = score

    def of(self, question: str, answer: str, expected: str | None) -> dict[str, float]:
        """Name -> score of one answer; those that say nothing of it are left out."""
        found = {}
        for name, score in self._scores.items():
            try:
                value = score(question, answer, expected)
                if value is not None:
                    found[name] = float(value)
            except (Exception, SystemExit) as error:  # whatever a user's function raises, training goes on
                self._warn(name, error)
        return found

    def _loaded(self, file: Path, function: str) -> Score | None:
        scope: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
        try:
            exec(compile(file.read_bytes(), str(file), "exec"), scope)
            found: Score = scope[function]
        except (Exception, SystemExit) as error:
            self._warn(function, error)
            return None
        return found

    def _warn(self, name: str, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
        line = " ".join(f"warning: {name} failed at {place}: {type(error).__name__}: {error}".split())[:400]
        if line not in self._warned and len(self._warned) < 20:
            self._warned.add(line)
            print(f"{line}; it scores nothing there, training goes on", flush=True)
            sys.stdout.flush()


def means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each score over the answers that it says something of."""
    names = {name: None for of_one in scores for name in of_one}
    return {
        name: sum(one[name] for one in scores if name in one) / sum(name in one for one in scores) for name in names
    }


def exact_match(_question: str, answer: str, expected: str | None) -> bool | None:
    return None if expected is None else answer.strip() == expected.strip()


def contains(_question: str, answer: str, expected: str | None) -> bool | None:
    return None if not expected or not expected.strip() else expected.strip() in answer


def json_valid(_question: str, answer: str, _expected: str | None) -> bool:
    """Whether the answer is one JSON value, in a fence of Markdown or not."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", answer, re.DOTALL)
    try:
        json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    return True


def tool_call_match(_question: str, answer: str, expected: str | None) -> bool | None:
    """Whether the answer calls the same tools with the same arguments, in the same order; None where none is expected."""
    wanted = tool_calls(expected or "")
    return tool_calls(answer) == wanted if wanted else None


def tool_calls(text: str) -> list[tuple[str, str]]:
    """(name, arguments as sorted JSON) of every JSON object in the text that names a function and its arguments, whatever tags a
    chat template puts around it."""
    found, decoder, at = list[tuple[str, str]](), json.JSONDecoder(), 0
    while (start := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            at = start + 1
            continue
        call = _call(value)
        if call is None:  # what is looked for may stand within
            at = start + 1
        else:
            found.append(call)
    return found


def _call(value: dict[str, Any]) -> tuple[str, str] | None:
    name = next((value[key] for key in NAME_KEYS if isinstance(value.get(key), str)), None)
    arguments = next((value[key] for key in ARGUMENT_KEYS if key in value), None)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if name is None or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, sort_keys=True)


OWN: dict[str, Score] = {
    "exact_match": exact_match,
    "contains": contains,
    "json_valid": json_valid,
    "tool_call_match": tool_call_match,
}
