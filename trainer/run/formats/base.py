"""DatasetFormat: the protocol that turns a row of some dataset into a Conversation, and helpers that formats share.

A format owns the meaning of columns. It refuses to know files, templates and tokens.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from trainer.run.formats.conversation import ASSISTANT, SYSTEM, TOOL, USER, BadRow, Conversation, Reason, Turn

ROLES = {
    "system": SYSTEM, "developer": SYSTEM, "context": SYSTEM,
    "human": USER, "user": USER, "prompter": USER, "customer": USER,
    "gpt": ASSISTANT, "assistant": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT, "chatgpt": ASSISTANT, "ai": ASSISTANT,
    "tool": TOOL, "observation": TOOL, "function_response": TOOL, "function": TOOL, "function-response": TOOL,
    "ipython": TOOL, "tool_response": TOOL,
}  # fmt: skip
"""Names that datasets give to roles."""

CALL_ROLES = {"function_call", "function-call", "tool_call", "tool_calls"}
"""Names of turns in which the assistant calls functions; their text is JSON."""


class DatasetFormat(Protocol):
    """A dataset's shape."""

    @property
    def name(self) -> str:
        """As in `format:` of job.yaml."""
        ...

    @property
    def columns(self) -> str:
        """The columns that it takes, for people."""
        ...

    def detect(self, columns: Collection[str]) -> bool:
        """Whether rows with these columns have this shape."""
        ...

    def parse(self, record: Mapping[str, Any]) -> Conversation:
        """The conversation in a row. Raises BadRow."""
        ...


def column(record: Mapping[str, Any], name: str) -> Any:
    """The value of a column that must be there. Raises BadRow."""
    try:
        return record[name]
    except KeyError:
        raise BadRow(Reason.MISSING_COLUMN, f"there is no column '{name}'") from None


def text_of(value: Any, where: str) -> str:
    """Text of a string, of nothing, or of content parts. Raises BadRow where it is something else."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join([_part_text(part, where) for part in value])
    raise BadRow(Reason.NOT_TEXT, f"{where} is {type(value).__name__}, not text")


def turn_weight(message: Mapping[str, Any]) -> float | None:
    """`loss_weight`, `weight` or `train` of a message. Raises BadRow."""
    for name in ("loss_weight", "weight"):
        value = message.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadRow(Reason.BAD_WEIGHT, f"{name} is {value!r}, not a number")
            return float(value)
    train = message.get("train")
    if train is None:
        return None
    if not isinstance(train, bool):
        raise BadRow(Reason.BAD_WEIGHT, f"train is {train!r}, not true or false")
    return None if train else 0.0


def tools_of(record: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The `tools` (or `functions`) column: a list of schemas, or its JSON text. Raises BadRow."""
    value = record.get("tools") or record.get("functions")
    if not value:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow(Reason.UNDECODABLE, f"the tools column is not JSON: {error}") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow(Reason.NOT_TEXT, "the tools column is not a list of schemas")
    return value


def exchange(prompt: str, response: str, system: str = "") -> Conversation:
    """A question and its answer."""
    turns = [Turn(SYSTEM, system)] if system.strip() else []
    return Conversation([*turns, Turn(USER, prompt), Turn(ASSISTANT, response)])


def add_calls(turns: list[Turn], text: str, weight: float | None) -> None:
    """Append function calls (JSON text) to the assistant's turn before, or as a turn of its own. Raises BadRow."""
    try:
        calls = json.loads(text)
    except ValueError as error:
        raise BadRow(
            Reason.UNDECODABLE, f"turn {len(turns) + 1} is a function call that is not JSON: {error}"
        ) from error
    wrapped = wrap_calls(calls if isinstance(calls, list) else [calls], f"turn {len(turns) + 1}")
    if turns and turns[-1].role == ASSISTANT:
        extra = turns[-1].extra = turns[-1].extra or {}
        extra.setdefault("tool_calls", []).extend(wrapped)
        return
    turns.append(Turn(ASSISTANT, "", weight, {"tool_calls": wrapped}))


def wrap_calls(calls: list[Any], where: str) -> list[dict[str, Any]]:
    """Function calls as chat templates take them: a name, and arguments as an object, not its JSON text. Raises BadRow."""
    out = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(Reason.NOT_TEXT, f"{where} has a function call without a name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError as error:
                raise BadRow(
                    Reason.UNDECODABLE, f"{where} calls a function with arguments that are not JSON"
                ) from error
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        out.append({"type": "function", **identity, "function": {"name": function["name"], "arguments": arguments}})
    if not out:
        raise BadRow(Reason.EMPTY, f"{where} calls no function")
    return out


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text":
        value = part["text"] if "text" in part else part.get("value")
        if isinstance(value, str):
            return value
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise BadRow(Reason.NOT_TEXT, f"{where} has a part that is not text ({kind})")
