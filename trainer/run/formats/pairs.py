"""Formats whose rows hold one exchange in columns: a question and its answer under various names, and alpaca."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.run.formats.base import DatasetFormat, column, exchange, from_json, text_of, tools_of
from trainer.run.formats.conversation import ASSISTANT, SYSTEM, USER, BadRow, Conversation, Reason, Turn
from trainer.run.formats.turns import TurnsFormat, turns_of


@dataclass(frozen=True, slots=True)
class PairFormat:
    """Columns that hold a prompt, its response and perhaps a system message."""

    name: str
    prompt: str
    response: str
    system: str | None = None

    @property
    def columns(self) -> str:
        return ", ".join(filter(None, (self.system, self.prompt, self.response)))

    def detect(self, columns: Collection[str]) -> bool:
        return self.prompt in columns and self.response in columns and (self.system is None or self.system in columns)

    def parse(self, record: Mapping[str, Any]) -> Conversation:
        if _is_messages(record.get(self.prompt)) or _is_messages(record.get(self.response)):
            return self._conversation(record)
        prompt = text_of(column(record, self.prompt), f"column '{self.prompt}'")
        response = text_of(column(record, self.response), f"column '{self.response}'")
        system = text_of(column(record, self.system), f"column '{self.system}'") if self.system else ""
        return exchange(prompt, response, system)

    def _conversation(self, record: Mapping[str, Any]) -> Conversation:
        """Both columns as messages, as TRL has them: what the assistant says in the prompt is not trained."""
        turns = _turns(column(record, self.prompt), USER, self.prompt)
        for turn in turns:
            if turn.role == ASSISTANT and turn.weight is None:
                turn.weight = 0.0
        turns += _turns(column(record, self.response), ASSISTANT, self.response)
        system = text_of(record.get(self.system), f"column '{self.system}'") if self.system else ""
        if system.strip() and not any(turn.role == SYSTEM for turn in turns):
            turns.insert(0, Turn(SYSTEM, system))
        return Conversation(turns, tools_of(record))


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and ("role" in value[0] or "from" in value[0])
    )


def _turns(value: Any, role: str, name: str) -> list[Turn]:
    """Messages, or the text of the one turn that a column holds."""
    return turns_of(value, name) if _is_messages(value) else [Turn(role, text_of(value, f"column '{name}'"))]


class AlpacaFormat:
    """instruction, input (may be empty or absent), output, history ([[prompt, response], ...]), system."""

    name = "alpaca"
    columns = "instruction, input, output, history, system"

    def detect(self, columns: Collection[str]) -> bool:
        return "instruction" in columns and "output" in columns

    def parse(self, record: Mapping[str, Any]) -> Conversation:
        instruction = text_of(column(record, "instruction"), "column 'instruction'")
        given = text_of(record.get("input"), "column 'input'")
        output = text_of(column(record, "output"), "column 'output'")
        system = text_of(record.get("system"), "column 'system'")
        turns = [Turn(SYSTEM, system)] if system.strip() else []
        history = record.get("history") or []
        if isinstance(history, str):
            history = from_json(history, "column 'history'")
        if not isinstance(history, list):
            raise BadRow(Reason.ROLE_BROKEN, "column 'history' is not a list of [prompt, response]")
        for pair in history:
            if not isinstance(pair, list) or len(pair) != 2:
                raise BadRow(Reason.ROLE_BROKEN, "column 'history' is not a list of [prompt, response]")
            turns.append(Turn(USER, text_of(pair[0], "column 'history'")))
            turns.append(Turn(ASSISTANT, text_of(pair[1], "column 'history'")))
        prompt = f"{instruction}\n\n{given}" if instruction.strip() and given.strip() else instruction or given
        return Conversation([*turns, Turn(USER, prompt), Turn(ASSISTANT, output)])


class TextFormat:
    """Plain text for continued pretraining: every token is trained, and the end token closes it."""

    name = "text"
    columns = "text"

    def detect(self, columns: Collection[str]) -> bool:
        return "text" in columns

    def parse(self, record: Mapping[str, Any]) -> Conversation:
        return Conversation(text=text_of(column(record, "text"), "column 'text'"))


PAIRS = (
    PairFormat("system-question-response", "question", "response", "system_prompt"),
    PairFormat("query-answer", "query", "answer"),
    PairFormat("question-answer", "question", "answer"),
    PairFormat("prompt-response", "prompt", "response"),
    PairFormat("query-response", "query", "response"),
    PairFormat("question-response", "question", "response"),
    PairFormat("prompt-completion", "prompt", "completion"),
    PairFormat("instruction-response", "instruction", "response"),
)


def chosen_fields(fields: Mapping[str, str]) -> DatasetFormat:
    """The format for `fields:` of job.yaml. Raises KeyError, with what is missing, where it names too little."""
    known = {"prompt", "response", "system", "messages", "text"}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise KeyError(f"`fields` knows {', '.join(sorted(known))}, not {', '.join(unknown)}")
    if "messages" in fields and len(fields) == 1:
        return TurnsFormat("fields", fields["messages"], fields["messages"])
    if "text" in fields and len(fields) == 1:
        return RenamedText(fields["text"])
    if {"prompt", "response"} <= set(fields) <= {"prompt", "response", "system"}:
        return PairFormat("fields", fields["prompt"], fields["response"], fields.get("system"))
    raise KeyError("`fields` needs prompt and response (and perhaps system), or messages alone, or text alone")


@dataclass(frozen=True, slots=True)
class RenamedText:
    """Plain text under a name of one's own."""

    text: str
    name: str = "fields"

    @property
    def columns(self) -> str:
        return self.text

    def detect(self, columns: Collection[str]) -> bool:
        return self.text in columns

    def parse(self, record: Mapping[str, Any]) -> Conversation:
        return Conversation(text=text_of(column(record, self.text), f"column '{self.text}'"))
