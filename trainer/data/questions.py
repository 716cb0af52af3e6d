"""What the model is asked at every evaluation: the job's prompts, then the first questions of a validation set, as token ids.

Owns their choice and order. Refuses to know the model. The same on every rank and every attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.prepared import Prepared
from trainer.run.exits import BadInput
from trainer.run.prompts import read_prompts
from trainer.run.spec import TrainSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPTS = "prompts"
"""Where a question comes from that is no validation set's."""


@dataclass(frozen=True, slots=True)
class Question:
    origin: str
    """Name of the validation set, or PROMPTS."""
    ids: tuple[int, ...]
    """What the model is given, up to where its answer begins."""
    text: str
    """What the user says last."""
    expected: str | None
    """The answer that the data or the file of prompts holds."""


def questions_of(spec: TrainSpec, tokenizer: PreTrainedTokenizerFast, data: Prepared) -> list[Question]:
    """In the order in which they are numbered. Raises BadInput for a prompt that the chat template refuses, or that leaves no
    room in a sequence."""
    room = spec.data.sequence_length
    found = []
    for number, prompt in enumerate(read_prompts(spec.evaluate), 1):
        ids = _rendered(tokenizer, prompt.messages, number)
        if len(ids) > room:
            raise BadInput(
                f"evaluate.prompts: prompt {number} has {len(ids)} tokens, and data.sequence_length is {room}"
            )
        found.append(Question(PROMPTS, tuple(ids), prompt.messages[-1]["content"].strip(), prompt.answer))
    sets = data.validation_sets
    name = spec.evaluate.questions_of or next(iter(sets), None)
    if name in sets:
        found += _held_out(tokenizer, data, name, spec.evaluate.num_questions)
    return found


def _rendered(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], number: int) -> list[int]:
    from jinja2 import TemplateError

    try:
        return list(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise BadInput(f"evaluate.prompts: the chat template refuses prompt {number}: {error}") from None


def _held_out(tokenizer: PreTrainedTokenizerFast, data: Prepared, name: str, count: int) -> list[Question]:
    """The first conversations of the set in which something is asked before the first trained token."""
    found: list[Question] = []
    for sequence in data.validation_sets[name].tolist():
        if len(found) == count:
            break
        ids, is_target = data.token_ids(sequence), data.token_weights(sequence) > 0
        first = int(np.argmax(is_target))
        if first < 2 or not is_target[first]:  # a text without turns, or one that is trained from its start
            continue
        rest = is_target[first:]
        end = first + (int(np.argmin(rest)) if not rest.all() else len(rest))
        prompt = ids[:first].tolist()
        expected = tokenizer.decode(ids[first:end].tolist(), skip_special_tokens=True).strip()
        found.append(Question(name, tuple(prompt), last_question(tokenizer, prompt), expected))
    return found


def last_question(tokenizer: Any, prompt: list[int]) -> str:
    """What the user says last in a rendered prompt: the text between what the chat template puts around a user's turn."""
    from jinja2 import TemplateError

    mark = "\ufffcquestion\ufffc"
    turns = [{"role": "user", "content": mark}]
    try:
        rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except TemplateError:  # a template may insist on other turns; the whole prompt is shown then
        rendered = ""
    before, _, after = rendered.partition(mark)
    text = tokenizer.decode(prompt)
    if after.strip() and text.rstrip().endswith(after.rstrip()):
        text = text.rstrip()[: -len(after.rstrip())]
        for start in range(len(before)):  # a template may begin the first turn with more than the others
            if before[start:] in text:
                return str(text.rpartition(before[start:])[2].strip())
    found: str = tokenizer.decode(prompt, skip_special_tokens=True).strip()
    return found
