"""Speech: where in a rendered conversation each turn is written, and which part of it the model must write itself.

Owns character spans of turns. An answer's span starts where the generation prompt ends and ends with its end marker. It
is found by what changes, not by prefixes: the conversation is rendered once more with marks around everything that is
said (anchors.py); if the text is the same without them, they say where everything stands, and what does not stand there.
Refuses to know weights and tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from trainer.data.anchors import MARKINGS, Anchor, Kind, Marker, Place
from trainer.data.endings import Endings
from trainer.data.template import TEMPLATE_ERRORS, ChatTemplate, Messages
from trainer.run.formats.conversation import ASSISTANT, BadRow, Reason

_CUT_WORD = re.compile(r"[^\s>\]]*\Z")
"""What a text ends with behind its last white space or tag."""


@dataclass(slots=True)
class Said:
    """One turn in the text."""

    message: int
    start: int
    end: int
    marker: str | None
    """The end marker that the span ends with."""
    thoughts: list[tuple[int, int]] = field(default_factory=list)
    """Parts of the span that are thoughts, with the tags around them."""


@dataclass(slots=True)
class Speech:
    said: list[Said]
    """Every turn of the assistant, and those of others that were asked for, in order."""
    places: list[Place]
    anchors: list[Anchor]

    def missing(self) -> list[Anchor]:
        """What was said and stands nowhere in the text."""
        there = {id(place.anchor) for place in self.places}
        return [anchor for anchor in self.anchors if id(anchor) not in there]


class Listener:
    """Finds the turns in what one template writes."""

    def __init__(self, template: ChatTemplate, endings: Endings) -> None:
        self._template = template
        self._endings = endings
        self._tails: dict[tuple[object, ...], str] = {}

    def listen(self, messages: Messages, tools: Any, text: str, others: frozenset[int] = frozenset()) -> Speech | None:
        """The turns in `text`, which is what the template writes for the messages; `others` are numbers of messages that
        are wanted besides the assistant's. None where marks change the text, however few of them."""
        marker = Marker.for_text(text)
        if marker is None:
            return None
        for how in MARKINGS:
            if others and not how.others:
                continue
            marked = marker.mark(messages, how)
            if marked is None:
                continue
            try:
                found = marker.locate(self._template.render(marked, tools))
            except TEMPLATE_ERRORS:
                continue
            if found is None or found[0] != text:
                continue
            said = self._said(marker, marked, tools, text, found[1], others)
            if said is not None:
                return Speech(said, found[1], list(marker.anchors))
        return None

    def by_prefixes(self, messages: Messages, tools: Any, text: str) -> list[Said]:
        """What a turn adds to the rendering of the turns before it, behind the header that asks for it: for templates
        that bear no marks. Raises BadRow where the beginning of the text depends on what follows."""
        out = []
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._template.render(messages[:number], tools)
            asked = self._template.render(messages[:number], tools, True)
            after = text if number + 1 == len(messages) else self._template.render(messages[: number + 1], tools)
            if not (text.startswith(after) and text.startswith(before) and len(before) < len(after)):
                raise BadRow(
                    Reason.TEMPLATE,
                    f"turn {number + 1} is written differently with and without what follows, so that its mask is "
                    "unknown; mark the assistant's words in the template with {% generation %}",
                )
            start = max(len(before), common_prefix(asked, text))
            end = max(start, len(text[: len(after)].rstrip()))
            out.append(self.closed(text, number, start, end))
        return out

    def closed(self, text: str, message: int, start: int, end: int) -> Said:
        """A passage with its end marker, where it does not hold one already."""
        marker = self._endings.of_passage(text[start:end])
        if marker is None:
            found = self._endings.right_behind(text, end)
            if found is not None:
                end, marker = found
        return Said(message, start, end, marker)

    def _said(
        self, marker: Marker, marked: Messages, tools: Any, text: str, places: list[Place], others: frozenset[int]
    ) -> list[Said] | None:
        out = []
        last_of: dict[int, int] = {}
        for number, place in enumerate(places):
            last_of[place.anchor.message] = number
        known = {anchor.message for anchor in marker.anchors}
        at = 0
        while at < len(places):
            message = places[at].anchor.message
            last = last_of[message]
            mine = places[at : last + 1]
            is_wanted = marked[message]["role"] == ASSISTANT or message in others
            if is_wanted:
                if any(place.anchor.message != message for place in mine):
                    return None
                before = places[at - 1].end if at else 0
                behind = places[last + 1].start if last + 1 < len(places) else len(text)
                start = mine[0].start
                if marked[message]["role"] == ASSISTANT:
                    start = self._start(marker, marked, tools, message, text, before, start)
                end, ending = self._end(marker, marked, tools, message, text, mine[-1].end, behind)
                out.append(Said(message, start, end, ending, _thoughts(mine, start)))
                at = last + 1
            else:
                at += 1
        for number, message_dict in enumerate(marked):  # nothing to mark in an answer: nothing is known about it
            if message_dict["role"] == ASSISTANT and number not in known:
                return None
        return sorted(out, key=lambda said: said.start)

    def _start(
        self, marker: Marker, marked: Messages, tools: Any, message: int, text: str, before: int, first: int
    ) -> int:
        """Where the generation prompt ends between the end of what was said before and the turn's first word.

        Many parameters: a turn within its conversation, and where it stands in the text.
        """
        header = text[before:first]
        roles = tuple(str(one["role"]) for one in marked[max(0, message - 2) : message])
        key = (roles, message < 3, bool(tools))
        tail = self._tails.get(key)
        if tail is None or not (header.startswith(tail) or tail.startswith(header)):
            asked = self._asked(marked, message, tools)
            if asked is None:
                return first
            tail = self._tails[key] = marker.behind_the_last(asked)
        common = common_prefix(tail, header)
        if common == len(tail) or common == len(header):
            return before + common
        # What stands before the header differs: look for the header alone.
        prompt = self._prompt(marked, message, tools)
        for size in range(len(prompt), 0, -1):
            at = header.rfind(prompt[:size])
            if at >= 0:  # where they part inside a word or a tag, the whole of it is the model's
                cut = _CUT_WORD.search(prompt[:size])
                size = cut.start() if cut else size
                return self._endings.whole(text, before + at + size)
        return first

    def _asked(self, marked: Messages, message: int, tools: Any) -> str | None:
        try:
            return self._template.render(marked[:message], tools, True)
        except TEMPLATE_ERRORS:
            return None

    def _prompt(self, marked: Messages, message: int, tools: Any) -> str:
        """What asking for an answer adds."""
        asked = self._asked(marked, message, tools)
        try:
            plain = self._template.render(marked[:message], tools)
        except TEMPLATE_ERRORS:
            return ""
        return asked[len(plain) :] if asked is not None and asked.startswith(plain) else ""

    def _end(
        self, marker: Marker, marked: Messages, tools: Any, message: int, text: str, last: int, behind: int
    ) -> tuple[int, str | None]:
        """Where the turn ends behind its last word, and with which end marker. Many parameters: as for its start."""
        found = self._endings.behind(text, last, behind)
        if found is not None:
            return found
        if message + 1 < len(marked):
            try:
                alone = marker.behind_the_last(self._template.render(marked[: message + 1], tools))
            except TEMPLATE_ERRORS:
                return last, None
            behind = self._endings.whole(text, last + common_prefix(alone, text[last:behind]))
        return last + len(text[last:behind].rstrip()), None


def _thoughts(places: list[Place], start: int) -> list[tuple[int, int]]:
    """Each thought from where the turn's own words before it end to where those behind it begin."""
    out = []
    for number, place in enumerate(places):
        if place.anchor.kind is Kind.THOUGHT:
            begin = places[number - 1].end if number else start
            end = places[number + 1].start if number + 1 < len(places) else place.end
            out.append((min(begin, place.start), end))
    return out


def common_prefix(one: str, other: str) -> int:
    """Characters that two texts have in common at their beginning."""
    if other.startswith(one):
        return len(one)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
