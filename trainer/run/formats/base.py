"""DatasetFormat: the protocol that turns a row of some dataset into a Conversation, and helpers that formats share.

A format owns the meaning of columns. It refuses to know files, templates and tokens.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Collection, Mapping
from decimal import Decimal
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


TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
THOUGHT_PARTS = frozenset({"reasoning", "thinking", "thought", "thoughts", "think", "reasoning_content"})
CALL_PARTS = frozenset({"tool_call", "tool_calls", "tool_use", "function_call", "function_calls"})
"""Types of content parts."""


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
    """Text of a string, of a number, of nothing, or of content parts. Raises BadRow where it is something else."""
    if type(value) is str:
        return value
    if value is None or value != value:  # pandas writes what is missing as a number that is none
        return ""
    if isinstance(value, list):
        return "".join([_part_text(part, where) for part in value])
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(value)
    raise BadRow(Reason.NOT_TEXT, f"{where} is {type(value).__name__}, not text")


def role_of(said: Any) -> str | None:
    """The role that a dataset's name for it means, in capitals or not; None for none that is known."""
    return ROLES.get(said) or ROLES.get(said.strip().lower()) if isinstance(said, str) else None


def calls_functions(said: Any) -> bool:
    """Whether turns of this role hold function calls as their text."""
    return isinstance(said, str) and said.strip().lower() in CALL_ROLES


def from_json(text: str, what: str) -> Any:
    """A value that was saved as JSON text, or as Python prints it, in a string. Raises BadRow."""
    try:
        return json.loads(text)
    except RecursionError:
        raise BadRow(Reason.UNDECODABLE, f"{what} is JSON nested too deeply") from None
    except ValueError as error:
        if text.lstrip()[:2] in ("[{", "{'"):  # a CSV file that pandas wrote
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                return ast.literal_eval(text.strip())
        raise BadRow(Reason.UNDECODABLE, f"{what} is not JSON: {error}") from error


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
    return 1.0 if train else 0.0


class Arguments(dict[str, Any]):
    """Arguments of a function call that the data holds as JSON text, which some chat templates write as it stands."""

    text: str


def without_padding(value: Any, meant: Collection[str] = ()) -> Any:
    """A value without what is null in its objects: Arrow gives every object of a column the keys of all of them. Under
    the keys `meant` a null may be meant."""
    if isinstance(value, dict):
        return {key: without_padding(inner, meant) for key, inner in value.items() if inner is not None or key in meant}
    if isinstance(value, list):
        return [without_padding(inner, meant) for inner in value]
    return value


def tools_of(record: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The `tools` (or `functions`) column: a list of schemas, or its JSON text. Raises BadRow."""
    value = record.get("tools") or record.get("functions")
    if not value:
        return None
    if isinstance(value, str):
        value = from_json(value, "the tools column") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow(Reason.NOT_TEXT, "the tools column is not a list of schemas")
    found: list[dict[str, Any]] | None = without_padding(value, ("default", "const"))
    return found


def exchange(prompt: str, response: str, system: str = "") -> Conversation:
    """A question and its answer."""
    turns = [Turn(SYSTEM, system)] if system.strip() else []
    return Conversation([*turns, Turn(USER, prompt), Turn(ASSISTANT, response)])


def add_calls(turns: list[Turn], text: str, weight: float | None) -> None:
    """Append function calls (JSON text) to the assistant's turn before, or as a turn of its own. Raises BadRow."""
    calls = from_json(text, f"the function call in turn {len(turns) + 1}")
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
            text, arguments = arguments, from_json(arguments or "{}", f"what {where} calls a function with")
            if isinstance(arguments, dict):
                arguments = Arguments(arguments)
                arguments.text = text or "{}"
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        out.append({"type": "function", **identity, "function": {"name": function["name"], "arguments": arguments}})
    if not out:
        raise BadRow(Reason.EMPTY, f"{where} calls no function")
    return out


def strip_arguments(turns: list[Turn], tools: list[dict[str, Any]] | None) -> None:
    """Drop arguments that are null and that the function does not have: Arrow's padding, in a file made from Arrow."""
    parameters: dict[str, Any] = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        if isinstance(function, dict) and isinstance(function.get("parameters"), dict):
            parameters[str(function.get("name"))] = function["parameters"].get("properties") or {}
    for turn in turns:
        for call in (turn.extra or {}).get("tool_calls", ()):
            function = call["function"]
            arguments, known = function["arguments"], parameters.get(function["name"])
            if isinstance(known, dict) and type(arguments) is dict:
                function["arguments"] = {k: v for k, v in arguments.items() if v is not None or k in known}


def split_parts(content: Any, where: str) -> tuple[Any, str, list[Any]]:
    """(content, thoughts, calls) of a message: parts of the types of thoughts and calls are taken out of its content.

    A part holds its words as `text`, `value` or under its own type; calls are objects, lists of them, or their JSON text.
    Raises BadRow.
    """
    if not isinstance(content, list) or not any(_kind(part) in THOUGHT_PARTS | CALL_PARTS for part in content):
        return content, "", []
    words, thoughts, calls = [], [], []
    for part in content:
        kind = _kind(part)
        if kind in THOUGHT_PARTS:
            thoughts.append(text_of(_held(part), where))
        elif kind in CALL_PARTS:
            held = _held(part)
            if held is None:  # the call's own keys stand in the part
                held = {"name": part.get("name"), "arguments": part.get("arguments", part.get("input", {}))}
                held |= {"id": part["id"]} if "id" in part else {}
            held = from_json(held, f"the function call in {where}") if isinstance(held, str) else held
            calls += held if isinstance(held, list) else [held]
        else:
            words.append(part)
    return words, "\n".join(filter(None, thoughts)), calls


def _kind(part: Any) -> str:
    return str(part.get("type", "text")) if isinstance(part, dict) else "text"


def _held(part: Mapping[str, Any]) -> Any:
    """What a part holds, under any of the names for it."""
    for key in ("text", "value", "content", _kind(part), "calls"):
        if part.get(key) is not None:
            return part[key]
    return None


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and _kind(part) in TEXT_PARTS:
        value = _held(part)
        if isinstance(value, str):
            return value
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise BadRow(Reason.NOT_TEXT, f"{where} has a part that is not text ({kind})")
