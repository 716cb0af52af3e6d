"""Formats whose rows hold whole conversations: sharegpt (from/value) and messages (role/content)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trainer.run.formats.base import CALL_ROLES, ROLES, add_calls, column, text_of, tools_of, turn_weight, wrap_calls
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
        messages = column(record, self.list_column)
        if not isinstance(messages, list):
            raise BadRow(
                Reason.NOT_TEXT, f"column '{self.list_column}' is {type(messages).__name__}, not a list of turns"
            )
        turns: list[Turn] = []
        for message in messages:
            _add(turns, message)
        system = record.get("system")
        if isinstance(system, str) and system.strip() and not (turns and turns[0].role == "system"):
            turns.insert(0, Turn("system", system))
        return Conversation(turns, tools_of(record))


def _add(turns: list[Turn], message: Any) -> None:
    if not isinstance(message, dict):
        raise BadRow(Reason.NOT_TEXT, f"turn {len(turns) + 1} is {type(message).__name__}, not a turn")
    said = message.get("from")
    if said is None:
        said = message.get("role")
        content = message.get("content")
    else:
        content = message["value"] if "value" in message else message.get("content")
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        if said in CALL_ROLES:
            add_calls(turns, text_of(content, f"turn {len(turns) + 1}"), turn_weight(message))
            return
        raise BadRow(Reason.ROLE_BROKEN, f"turn {len(turns) + 1} has role {said!r}")
    if type(content) is not str:
        content = text_of(content, f"turn {len(turns) + 1}")
    if message.keys() in _PLAIN_KEYS:
        turns.append(Turn(role, content))
        return
    extra = {key: message[key] for key in _EXTRA_KEYS if message.get(key) is not None} or None
    calls = message.get("tool_calls") or (message.get("function_call") and [message["function_call"]])
    if calls:
        if role != ASSISTANT or not isinstance(calls, list):
            raise BadRow(Reason.ROLE_BROKEN, f"turn {len(turns) + 1} ({role}) calls functions")
        extra = {**(extra or {}), "tool_calls": wrap_calls(calls, f"turn {len(turns) + 1}")}
    turns.append(Turn(role, content, turn_weight(message), extra))


SHAREGPT = TurnsFormat("sharegpt", "conversations", "conversations: [{from, value}], tools, system")
SHAREGPT_SINGULAR = TurnsFormat("sharegpt-conversation", "conversation", "conversation: [{from, value}]")
MESSAGES = TurnsFormat("messages", "messages", "messages: [{role, content}], tools")
