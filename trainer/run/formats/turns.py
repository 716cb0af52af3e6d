"""Formats whose rows hold whole conversations: sharegpt (from/value) and messages (role/content)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trainer.run.formats.base import (
    add_calls,
    calls_functions,
    column,
    from_json,
    role_of,
    split_parts,
    strip_arguments,
    text_of,
    tools_of,
    turn_weight,
    wrap_calls,
)
from trainer.run.formats.conversation import ASSISTANT, BadRow, Conversation, Reason, Turn

_PLAIN_KEYS = (frozenset({"from", "value"}), frozenset({"role", "content"}))
_EXTRA_KEYS = ("tool_call_id", "name", "reasoning_content", "thinking", "reasoning")


class TurnsFormat:
    """A list of turns in one column. `from`/`value` and `role`/`content` are both understood in either."""

    def __init__(self, name: str, list_column: str, columns: str) -> None:
        self.name = name
        self.list_column = list_column
        self.columns = columns

    def detect(self, columns: Collection[str]) -> bool:
        return self.list_column in columns

    def parse(self, record: Mapping[str, Any]) -> Conversation:
        turns = turns_of(column(record, self.list_column), self.list_column)
        system = record.get("system")
        if isinstance(system, str) and system.strip() and not (turns and turns[0].role == "system"):
            turns.insert(0, Turn("system", system))
        tools = tools_of(record)
        strip_arguments(turns, tools)
        return Conversation(turns, tools)


def turns_of(messages: Any, column_name: str) -> list[Turn]:
    """The turns of a list of messages, of an object of lists (as the hub's sequences of objects come), or of either's JSON
    text. Raises BadRow."""
    if isinstance(messages, str):
        messages = from_json(messages, f"column '{column_name}'")
    if isinstance(messages, dict) and messages and all(isinstance(cells, list) for cells in messages.values()):
        if len({len(cells) for cells in messages.values()}) > 1:
            raise BadRow(Reason.ROLE_BROKEN, f"column '{column_name}' holds lists of different lengths")
        messages = [dict(zip(messages, cells, strict=True)) for cells in zip(*messages.values(), strict=True)]
    if not isinstance(messages, list):
        raise BadRow(Reason.NOT_TEXT, f"column '{column_name}' is {type(messages).__name__}, not a list of turns")
    turns: list[Turn] = []
    for message in messages:
        _add(turns, message)
    return turns


def _add(turns: list[Turn], message: Any) -> None:
    if not isinstance(message, dict):
        raise BadRow(Reason.NOT_TEXT, f"turn {len(turns) + 1} is {type(message).__name__}, not a turn")
    said = message.get("from")
    if said is None:
        said = message.get("role")
        content = message.get("content")
    else:
        content = message["value"] if "value" in message else message.get("content")
    place = f"turn {len(turns) + 1}"
    role = role_of(said)
    if role is None:
        if calls_functions(said):
            add_calls(turns, text_of(content, place), turn_weight(message))
            return
        raise BadRow(Reason.ROLE_BROKEN, f"{place} has role {said!r}")
    if type(content) is str and message.keys() in _PLAIN_KEYS:
        turns.append(Turn(role, content))
        return
    content, thoughts, calls = split_parts(content, place)
    extra = {key: message[key] for key in _EXTRA_KEYS if message.get(key) is not None}
    if thoughts:
        extra.setdefault("reasoning_content", thoughts)
    more = message.get("tool_calls") or (message.get("function_call") and [message["function_call"]]) or []
    if isinstance(more, str):
        more = from_json(more, f"the function calls in {place}")
    if calls or more:
        if role != ASSISTANT or not isinstance(more, list):
            raise BadRow(Reason.ROLE_BROKEN, f"{place} ({role}) calls functions")
        extra["tool_calls"] = wrap_calls([*calls, *more], place)
    turns.append(Turn(role, text_of(content, place), turn_weight(message), extra or None))


SHAREGPT = TurnsFormat("sharegpt", "conversations", "conversations: [{from, value}], tools, system")
SHAREGPT_SINGULAR = TurnsFormat("sharegpt-conversation", "conversation", "conversation: [{from, value}]")
MESSAGES = TurnsFormat("messages", "messages", "messages: [{role, content}], tools")
