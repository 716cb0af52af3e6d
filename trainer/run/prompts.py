"""The prompts of `evaluate.prompts`: read and checked, by the launcher before anything is paid and by the trainer.

Owns the two forms of a file. Refuses to know tokenizers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from trainer.run.exits import BadInput
from trainer.run.settings.evaluate import EvaluateSpec

ROLES = ("system", "user", "assistant")


class Prompt(NamedTuple):
    messages: list[dict[str, str]]
    """Turns with role and content, the last one the user's."""
    answer: str | None = None
    """What a right answer says, where it is known."""


def read_prompts(evaluate: EvaluateSpec) -> list[Prompt]:
    """In their order; none where none are stated. Raises BadInput, with the line, where a file cannot be understood."""
    stated = evaluate.prompts
    if not isinstance(stated, str):
        return [_of_text(text) for text in stated or ()]
    path = Path(stated)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"evaluate.prompts: {path} cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_of_text(line.strip()) if path.suffix != ".jsonl" else _of_row(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise BadInput(f"evaluate.prompts: {path}:{number}: {error}; correct it") from None
    if not found:
        raise BadInput(f"evaluate.prompts: {path} holds no prompt; write one a line, or remove the key")
    return found


def _of_text(text: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}])


def _of_row(row: Any) -> Prompt:
    """Raises ValueError where it is none."""
    if not isinstance(row, dict) or not isinstance(row.get("answer"), str | None):
        raise ValueError('is no prompt: write {"prompt": "...", "answer": "..."}, the answer where it is known')
    if isinstance(row.get("prompt"), str) and "messages" not in row:
        return Prompt(_of_text(row["prompt"]).messages, row.get("answer"))
    messages = row.get("messages")
    if "prompt" in row or not isinstance(messages, list) or not messages or not all(map(_is_turn, messages)):
        raise ValueError("states neither `prompt` nor `messages` as a list of turns with role and content")
    if messages[-1]["role"] == "assistant":
        raise ValueError("ends with the assistant's turn; put what it should say into `answer`")
    return Prompt([{"role": turn["role"], "content": turn["content"]} for turn in messages], row.get("answer"))


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)
