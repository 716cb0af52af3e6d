"""Anchors: private characters put around everything that is said in a conversation, so that it is found again in the text.

Owns which pieces of a message are marked (answers, thoughts, names and arguments of calls, what others say), the marks,
and their places in a rendered text. Refuses to know templates and tokens.

A mark stands inside a piece's surrounding white space, and thoughts are marked apart from what is around them: a template
that strips contents, or takes them apart at `</think>`, then does the same with marks and without.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, NamedTuple

from trainer.run.formats.conversation import ASSISTANT

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which templates read thoughts."""

_TAGS = re.compile(
    r"(?P<close></(?:think|thinking|thought|seed:think)>|\[/THINK\]|<\|end_of_thought\|>)"
    r"|<(?:think|thinking|thought|seed:think)>|\[THINK\]|<\|begin_of_thought\|>"
)
LEADING_TAG = re.compile(r"\s*(?:" + _TAGS.pattern.replace("?P<close>", "?:") + ")")
"""Content that begins with a tag."""
_PRIVATE_RANGES = ((0xE000, 0xF900), (0xF0000, 0xFFFFE))
"""Unicode's private use areas. The first keeps a text at two bytes a character."""


class Kind(StrEnum):
    ANSWER = "answer"
    THOUGHT = "thought"
    CALL = "call"
    OTHER = "other"
    """What somebody else than the assistant says."""


class Anchor(NamedTuple):
    message: int
    kind: Kind
    size: int
    """Characters between the marks."""


class Place(NamedTuple):
    """Where an anchor's characters stand in a text."""

    start: int
    end: int
    anchor: Anchor


class Marking(NamedTuple):
    """What is marked. A template that looks at contents before it writes them may bear less than everything."""

    others: bool = True
    names: bool = True
    arguments: bool = True


MARKINGS = (
    Marking(),
    Marking(others=False),
    Marking(names=False),
    Marking(others=False, names=False),
    Marking(others=False, arguments=False),
)
"""In the order in which they are tried."""


class Marker:
    """Marks the messages of one conversation."""

    def __init__(self, first: int, limit: int) -> None:
        self._first = first
        self._limit = limit
        self.anchors: list[Anchor] = []

    @classmethod
    def for_text(cls, text: str) -> Marker | None:
        """One whose characters the text does not hold; None where it holds all kinds of them."""
        for first, end in _PRIVATE_RANGES:
            if not re.search(f"[{chr(first)}-{chr(end - 1)}]", text):
                return cls(first, (end - first) // 2)
        return None

    def mark(self, messages: list[dict[str, Any]], how: Marking) -> list[dict[str, Any]] | None:
        """The messages with marks; None where there are more pieces than characters to mark them with."""
        self.anchors = []
        marked = [self._message(number, message, how) for number, message in enumerate(messages)]
        return marked if len(self.anchors) <= self._limit else None

    def locate(self, marked: str) -> tuple[str, list[Place]] | None:
        """The text without marks and where each anchor stands in it, in order; None where a piece was cut in two, or
        something of the assistant's is written twice."""
        pattern = re.compile(f"[{chr(self._first)}-{chr(self._first + 2 * max(1, len(self.anchors)) - 1)}]")
        places: list[Place] = []
        seen: set[int] = set()
        opened: tuple[int, int] | None = None
        for before, match in enumerate(pattern.finditer(marked)):
            number, closes = divmod(ord(match.group()) - self._first, 2)
            at = match.start() - before
            if not closes:
                if opened is not None or (number in seen and self.anchors[number].kind is not Kind.OTHER):
                    return None
                opened = (number, at)
                seen.add(number)
                continue
            if opened is None or opened[0] != number:
                return None
            places.append(Place(opened[1], at, self.anchors[number]))
            opened = None
        if opened is not None:
            return None
        return pattern.sub("", marked), places

    def behind_the_last(self, marked: str) -> str:
        """What stands behind the last mark."""
        for at in range(len(marked) - 1, -1, -1):
            if self._first <= ord(marked[at]) < self._first + 2 * len(self.anchors):
                return marked[at + 1 :]
        return marked

    def _message(self, number: int, message: dict[str, Any], how: Marking) -> dict[str, Any]:
        content = message["content"]
        if message["role"] != ASSISTANT:
            if not how.others:
                return message
            return {**message, "content": self._piece(content, number, Kind.OTHER)}
        out = dict(message)
        thought = next((message[key] for key in REASONING if key in message), None)
        if isinstance(thought, str):
            marked = self._piece(thought, number, Kind.THOUGHT)
            out.update({key: marked for key in REASONING if message.get(key) == thought})
        if content:
            out["content"] = "".join(
                self._piece(text, number, kind) if kind is not None else text for text, kind in pieces(content)
            )
        if "tool_calls" in message:
            out["tool_calls"] = [self._call(number, call, how) for call in message["tool_calls"]]
        return out

    def _call(self, number: int, call: dict[str, Any], how: Marking) -> dict[str, Any]:
        function = dict(call["function"])
        if how.names:
            function["name"] = self._piece(function["name"], number, Kind.CALL)
        if how.arguments and "arguments" in function:
            function["arguments"] = self._leaves(function["arguments"], number)
        return {**call, "function": function}

    def _leaves(self, value: Any, number: int) -> Any:
        if isinstance(value, str):
            return self._piece(value, number, Kind.CALL)
        if isinstance(value, dict):
            return {key: self._leaves(inner, number) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._leaves(inner, number) for inner in value]
        return value

    def _piece(self, text: str, message: int, kind: Kind) -> str:
        core = text.strip()
        if not core:
            return text
        lead = len(text) - len(text.lstrip())
        code = self._first + 2 * len(self.anchors)
        self.anchors.append(Anchor(message, kind, len(core)))
        if code + 1 >= self._first + 2 * self._limit:
            return text
        return f"{text[:lead]}{chr(code)}{core}{chr(code + 1)}{text[lead + len(core) :]}"


def pieces(content: str) -> list[tuple[str, Kind | None]]:
    """An answer's content in order: pieces with the tags between them (None). A piece is a thought where a closing tag
    follows and an opening one is before it, or nothing at all (the generation prompt opens it then)."""
    out: list[tuple[str, Kind | None]] = []
    at, is_open = 0, True
    for match in _TAGS.finditer(content):
        closes = match["close"] is not None
        out.append((content[at : match.start()], Kind.THOUGHT if closes and is_open else Kind.ANSWER))
        out.append((match.group(), None))
        at, is_open = match.end(), not closes
    out.append((content[at:], Kind.ANSWER))
    if not any(kind is not None and piece.strip() for piece, kind in out):  # nothing but tags
        return [(content, Kind.ANSWER)]
    return out


def thoughts_of(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The thoughts in text[start:end], with the tags around them."""
    out, at = [], start
    listed = pieces(text[start:end])
    for number, (piece, kind) in enumerate(listed):
        if kind is Kind.THOUGHT:
            opening = len(listed[number - 1][0]) if number and listed[number - 1][1] is None else 0
            out.append((at - opening, at + len(piece) + len(listed[number + 1][0])))
        at += len(piece)
    return out
