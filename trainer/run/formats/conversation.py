"""Conversation: what every dataset format is turned into, and what makes one unusable.

Owns roles, turns and their order. Refuses to know columns, templates and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"


class Reason(StrEnum):
    """Why a row is not used; data_report.json counts by these."""

    UNDECODABLE = "undecodable"
    MISSING_COLUMN = "missing column"
    NOT_TEXT = "not text"
    EMPTY = "empty"
    ONE_SIDED = "one-sided"
    ROLE_BROKEN = "role-broken"
    BAD_WEIGHT = "bad weight"
    TEMPLATE = "refused by the chat template"
    FILTER = "filter fails"


class BadRow(Exception):
    """A row that cannot be used: a reason to count, and a detail for a person."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadRow], tuple[Reason, str]]:
        return BadRow, (self.reason, self.detail)  # it is sent between processes


@dataclass(slots=True)
class Turn:
    """One message."""

    role: str
    content: str
    weight: float | None = None
    """How much its tokens count in the loss; None is 1 for an assistant turn and 0 for others."""
    extra: dict[str, Any] | None = None
    """What else the chat template may use: tool_calls, name, reasoning_content."""

    def message(self) -> dict[str, Any]:
        """As chat templates take it."""
        if self.extra is None:
            return {"role": self.role, "content": self.content}
        return {"role": self.role, "content": self.content, **self.extra}


class Segment(NamedTuple):
    """A piece of a text that is written as it stands."""

    text: str
    is_trained: bool


@dataclass(slots=True)
class Conversation:
    """Turns in order, or a plain text, or a text in segments (then there are no turns)."""

    turns: list[Turn] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    """JSON schemas of the functions that the assistant may call."""
    text: str | None = None
    segments: list[Segment] | None = None
    changes: list[str] = field(default_factory=list)
    """What was left out of it before anything else saw it, for the report to count."""


EMPTY_SYSTEM = "empty system message left out"
SYSTEM_DROPPED = "system message left out, as data.sources.drop_system says"
OPENING_ANSWER = "opening assistant turn left out"
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of `Turn.extra` that hold what the assistant thinks before it answers."""


def without_empty_system(conversation: Conversation) -> None:
    """Leave out a system message that says nothing, as exports write it into every row."""
    kept = [turn for turn in conversation.turns if turn.role != SYSTEM or turn.content.strip()]
    if len(kept) < len(conversation.turns):
        conversation.turns = kept
        conversation.changes.append(EMPTY_SYSTEM)


def without_system(conversation: Conversation) -> None:
    """Leave out the system message, whatever it says."""
    kept = [turn for turn in conversation.turns if turn.role != SYSTEM]
    if len(kept) < len(conversation.turns):
        conversation.turns = kept
        conversation.changes.append(SYSTEM_DROPPED)


def without_opening_answer(conversation: Conversation) -> bool:
    """Leave out what the assistant (or a tool) says before the user's first turn, for a template that cannot write it;
    whether there was any."""
    first = next((number for number, turn in enumerate(conversation.turns) if turn.role == USER), 0)
    kept = [turn for number, turn in enumerate(conversation.turns) if number >= first or turn.role == SYSTEM]
    if len(kept) == len(conversation.turns):
        return False
    conversation.turns = kept
    conversation.changes.append(OPENING_ANSWER)
    return True


def check(conversation: Conversation) -> None:
    """Raises BadRow where nobody could learn from it: empty, one-sided, or turns out of order."""
    if conversation.text is not None:
        if not conversation.text.strip():
            raise BadRow(Reason.EMPTY, "the text is empty")
        return
    if conversation.segments is not None:
        if not "".join(segment.text for segment in conversation.segments).strip():
            raise BadRow(Reason.EMPTY, "the segments are empty")
        if not any(segment.is_trained and segment.text for segment in conversation.segments):
            raise BadRow(Reason.ONE_SIDED, "no segment is trained")
        return
    turns = conversation.turns
    if not turns:
        raise BadRow(Reason.EMPTY, "there are no turns")
    roles = [turn.role for turn in turns]
    if ASSISTANT not in roles:
        raise BadRow(Reason.ONE_SIDED, "the assistant says nothing")
    if USER not in roles:
        raise BadRow(Reason.ONE_SIDED, "the user says nothing")
    before = None
    for number, turn in enumerate(turns, 1):
        role = turn.role
        if role == SYSTEM:
            if number > 1:
                raise BadRow(Reason.ROLE_BROKEN, f"turn {number} is a system message behind others")
        elif not turn.content.strip() and not _says_otherwise(turn):
            if role != TOOL:
                raise BadRow(Reason.EMPTY, f"turn {number} ({role}) is empty")
        elif role == before and role != TOOL:
            raise BadRow(Reason.ROLE_BROKEN, f"turns {number - 1} and {number} are both {role}")
        elif before in (None, SYSTEM) and role == TOOL:
            raise BadRow(Reason.ROLE_BROKEN, f"the conversation starts with the {role}")
        elif role == TOOL and before not in (ASSISTANT, TOOL):
            raise BadRow(Reason.ROLE_BROKEN, f"turn {number} is a tool's result that no one asked for")
        if turn.weight is not None and not (0 <= turn.weight < float("inf")):
            raise BadRow(Reason.BAD_WEIGHT, f"turn {number} has weight {turn.weight}")
        before = role


def _says_otherwise(turn: Turn) -> bool:
    """Whether a turn without words calls functions, or holds its words as thoughts."""
    extra = turn.extra or {}
    return bool(extra.get("tool_calls")) or any(str(extra.get(key) or "").strip() for key in THOUGHTS)
