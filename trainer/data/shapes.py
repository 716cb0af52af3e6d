"""Shapes: what a chat template writes around the turns of plain conversations, learned once for each order of roles.

A template that writes contents as they are, or stripped, puts the same text between them in every conversation with the
same roles. Then one rendering is enough: the text is compared, piece by piece, with what was learned, and the spans follow.
A conversation that does not fit in every character is nobody's here. Refuses to know how a shape is found (render.py).
"""

from __future__ import annotations

from typing import NamedTuple

from trainer.data.anchors import Place
from trainer.data.speech import Said

MAX_SHAPES = 4096
"""Shapes that a process remembers."""


class Corner(NamedTuple):
    """A place in the text: characters behind the beginning of the text that stands before turn `piece`."""

    piece: int
    offset: int


class ShapedTurn(NamedTuple):
    message: int
    start: Corner
    end: Corner
    marker: str | None


class Shape(NamedTuple):
    constants: list[str]
    """One more than there are turns: what stands before, between and behind them."""
    turns: list[ShapedTurn]

    def fit(self, contents: list[str], text: str) -> list[Said] | None:
        """The turns in `text`, which the template wrote for these contents; None where it does not fit."""
        constants = self.constants
        if not text.startswith(constants[0]):
            return None
        begins, at = [0], len(constants[0])
        for content, constant in zip(contents, constants[1:], strict=True):
            for written in (content, content.strip()):
                end = at + len(written)
                if text.startswith(written, at) and text.startswith(constant, end):
                    break
            else:
                return None
            begins.append(end)
            at = end + len(constant)
        if at != len(text):
            return None
        said = []
        for turn in self.turns:
            start = begins[turn.start.piece] + turn.start.offset
            end = begins[turn.end.piece] + turn.end.offset
            if turn.marker is None:  # white space behind the last word is trained only where an end marker follows
                end = max(start, end - len(text[start:end]) + len(text[start:end].rstrip()))
            said.append(Said(turn.message, start, end, turn.marker))
        return said


def shape_of(text: str, places: list[Place], said: list[Said], num_turns: int) -> Shape | None:
    """The shape of a text in which each turn stands once, in order; None where it is not so."""
    if [place.anchor.message for place in places] != list(range(num_turns)):
        return None
    edges = [0, *(edge for place in places for edge in (place.start, place.end)), len(text)]
    begins, ends = edges[0::2], edges[1::2]
    turns = []
    for one in said:
        start, end = (
            next((Corner(i, at - b) for i, (b, e) in enumerate(zip(begins, ends, strict=True)) if b <= at <= e), None)
            for at in (one.start, one.end)
        )
        if start is None or end is None:
            return None
        turns.append(ShapedTurn(one.message, start, end, one.marker))
    return Shape([text[b:e] for b, e in zip(begins, ends, strict=True)], turns)
