"""Renders conversations with the chat template and says which characters are trained, for any template.

Owns weights of character spans, and what is counted about a conversation on the way (told.py). Refuses to know tokens and
files. The text is what `apply_chat_template` renders (template.py); where each turn is in it is speech.py's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from trainer.data.anchors import LEADING_TAG, Anchor, Kind, pieces, thoughts_of
from trainer.data.endings import Endings
from trainer.data.shapes import MAX_SHAPES, Shape, shape_of
from trainer.data.speech import Listener, Said, Speech
from trainer.data.template import TEMPLATE_ERRORS, ChatTemplate, Messages, templates_of
from trainer.data.told import EARLIER_THOUGHTS, THOUGHTS, Told
from trainer.run.formats.conversation import ASSISTANT, SYSTEM, TOOL, BadRow, Conversation, Reason, Segment, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Reasoning = bool | Literal["last"]

_GONE = {SYSTEM: "system message", TOOL: "tool result"}


class Span(NamedTuple):
    """Characters [start, end) of the text, whose tokens count `weight` times as targets."""

    start: int
    end: int
    weight: float


@dataclass(slots=True)
class Rendered:
    text: str
    spans: list[Span]
    """Where spans overlap the later one holds."""


class Renderer:
    """A tokenizer's templates, and what the job trains of what they write."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        train_on_inputs: bool,
        last_turn_only: bool,
        *,
        reasoning: Reasoning = True,
        unroll: bool = False,
        stops: list[int] | None = None,
    ) -> None:
        self._train_on_inputs = train_on_inputs
        self._last_turn_only = last_turn_only
        self._reasoning = reasoning
        self._unroll = unroll
        stops = stops or [tokenizer.eos_token_id]
        plain, with_tools = templates_of(tokenizer)
        self._plain = _Voice(plain, Endings(tokenizer, stops, plain))
        self._with_tools = (
            self._plain if with_tools is plain else _Voice(with_tools, Endings(tokenizer, stops, with_tools))
        )
        self.told = Told()
        """Of what was rendered since it was last replaced."""

    def moves_tools(self, conversation: Conversation) -> bool:
        """Whether the conversation's tools go into its system message, as the template does not write any."""
        return bool(conversation.tools) and not self._voice(conversation).template.uses_tools

    def render(self, conversation: Conversation) -> Rendered:
        """The text and its trained spans, as one sequence."""
        return self.render_all(conversation)[-1]

    def render_all(self, conversation: Conversation) -> list[Rendered]:
        """One text; with `unroll` one more before it for each answer whose thoughts the template drops once others follow.

        Raises BadRow where the template refuses the conversation, or where it is unknown what of the text is whose.
        """
        if conversation.text is not None:
            return [Rendered(conversation.text, [Span(0, len(conversation.text), 1.0)])]
        if conversation.segments is not None:
            return [self._joined(conversation.segments)]
        turns = conversation.turns
        voice = self._voice(conversation)
        told = Told()
        out: list[Rendered] = []
        try:
            text, said, heard = voice.speak(turns, conversation, self._reasoning is not True)
            silent: set[int] = set()
            if heard is not None:
                if self._unroll and not self._last_turn_only:
                    silent = self._earlier_thoughts(heard, turns, out, told, conversation)
                heard.told(told, silent)
        except TEMPLATE_ERRORS as error:
            raise BadRow(Reason.TEMPLATE, str(error).strip() or type(error).__name__) from error
        out.append(Rendered(text, self._weigh(turns, text, said, heard, told, silent)))
        self.told.add(told)
        return out

    def _voice(self, conversation: Conversation) -> _Voice:
        return self._plain if conversation.tools is None else self._with_tools

    def _joined(self, segments: list[Segment]) -> Rendered:
        text, spans = "", []
        for segment in segments:
            if self._train_on_inputs or segment.is_trained:
                spans.append(Span(len(text), len(text) + len(segment.text), 1.0))
            text += segment.text
        return Rendered(text, spans[-1:] if self._last_turn_only else spans)

    def _earlier_thoughts(
        self, heard: _Heard, turns: list[Turn], out: list[Rendered], told: Told, conversation: Conversation
    ) -> set[int]:
        """Render each answer that lost its thoughts as the last of a conversation of its own; the messages that were."""
        done: set[int] = set()
        for message in sorted({anchor.message for anchor in heard.missing if anchor.kind is Kind.THOUGHT}):
            count = message - heard.offset + 1
            if count == len(turns):
                continue
            alone = Conversation(turns[:count], conversation.tools)
            text, said, again = self._voice(alone).speak(turns[:count], alone, True)
            if again is None or any(one.kind is Kind.THOUGHT and one.message == message for one in again.missing):
                continue
            before = set(range(message))
            out.append(Rendered(text, self._weigh(turns[:count], text, said, again, told, before)))
            done.add(message)
        return done

    def _weigh(
        self, turns: list[Turn], text: str, said: list[Said], heard: _Heard | None, told: Told, silent: set[int]
    ) -> list[Span]:
        offset = heard.offset if heard is not None else 0
        last = max(number for number, turn in enumerate(turns) if turn.role == ASSISTANT)
        is_unclear = any(one.message < 0 for one in said)
        if is_unclear and (self._last_turn_only or any(turn.weight not in (None, 1.0) for turn in turns)):
            raise BadRow(
                Reason.TEMPLATE,
                f"the template marks {len(said)} passages for {sum(turn.role == ASSISTANT for turn in turns)} assistant "
                "turns, so that it is unclear which weight is whose",
            )
        spans = [Span(0, len(text), 1.0)] if self._train_on_inputs else []
        for one in said:
            turn = one.message - offset
            weight = 1.0 if one.message < 0 or turns[turn].weight is None else turns[turn].weight
            assert weight is not None
            is_answer = one.message < 0 or turns[turn].role == ASSISTANT
            if (self._last_turn_only and turn != last) or one.message in silent:
                weight = 0.0
            spans.append(Span(one.start, one.end, weight))
            if weight and (self._reasoning is False or (self._reasoning == "last" and turn != last)):
                thoughts = one.thoughts
                if heard is not None and heard.speech is None:
                    thoughts = thoughts_of(text, one.start, one.end)
                spans += [Span(start, end, 0.0) for start, end in thoughts]
            if weight and is_answer:
                told.end(one.marker)
            elif weight:
                told.change(f"trained turns of the {turns[turn].role}")
        self._measure(turns, text, spans, heard, told, silent)
        return spans

    def _measure(
        self, turns: list[Turn], text: str, spans: list[Span], heard: _Heard | None, told: Told, silent: set[int]
    ) -> None:
        """Count what the assistants say, and how much of it is trained; not of messages that only lead up to others."""
        if heard is None or heard.speech is None:
            size = sum(len(turn.content) for turn in turns if turn.role == ASSISTANT)
            told.said += size
            told.trained += min(size, sum(span.end - span.start for span in spans if span.weight))
            return
        speech = heard.speech
        for anchor in speech.anchors:
            if anchor.kind is not Kind.OTHER and anchor.message not in silent:
                told.said += anchor.size
        for place in speech.places:
            if place.anchor.kind is not Kind.OTHER and place.anchor.message not in silent:
                weight = next((s.weight for s in reversed(spans) if s.start <= place.start and place.end <= s.end), 0.0)
                told.trained += place.anchor.size if weight else 0


@dataclass(slots=True)
class _Heard:
    """What is known of a conversation that was looked at piece by piece."""

    messages: Messages
    offset: int
    """Messages before the first turn."""
    speech: Speech | None
    missing: list[Anchor]
    lost: set[str]
    """What else is not in the text."""

    def told(self, told: Told, silent: set[int]) -> None:
        last = max(number for number, message in enumerate(self.messages) if message["role"] == ASSISTANT)
        gone = set(self.lost)
        for anchor in self.missing:
            if anchor.kind is Kind.THOUGHT:
                if anchor.message not in silent:
                    gone.add(THOUGHTS if anchor.message == last else EARLIER_THOUGHTS)
            elif anchor.kind is Kind.CALL:
                gone.add("function call")
            elif anchor.kind is Kind.ANSWER:
                gone.add("answer")
            else:
                gone.add(_GONE.get(self.messages[anchor.message]["role"], "user turn"))
        told.leave_out(sorted(gone))


class _Voice:
    """One template with its end markers, and the shapes that it was seen to write."""

    def __init__(self, template: ChatTemplate, endings: Endings) -> None:
        self.template = template
        self._endings = endings
        self._listener = Listener(template, endings)
        self._shapes: dict[tuple[str, ...], Shape | None] = {}

    def speak(
        self, turns: list[Turn], conversation: Conversation, wants_thoughts: bool
    ) -> tuple[str, list[Said], _Heard | None]:
        """The text, where its turns are, and what else was seen; None where the conversation had a known shape."""
        shape = self._shape(turns, conversation, wants_thoughts)
        messages, text = self.template.settle(turns, conversation)
        if shape is not None:
            said = shape.fit([turn.content for turn in turns], text)
            if said is not None:
                return text, said, None
        offset = len(messages) - len(turns)
        others = frozenset(
            number + offset for number, turn in enumerate(turns) if turn.weight and turn.role != ASSISTANT
        )
        speech = self._listener.listen(messages, conversation.tools, text, others)
        said = self._said(messages, conversation, text, speech, others)
        missing = speech.missing() if speech is not None else []
        heard = _Heard(messages, offset, speech, missing, _lost(messages, conversation, text, speech))
        return text, said, heard

    def _said(
        self,
        messages: Messages,
        conversation: Conversation,
        text: str,
        speech: Speech | None,
        others: frozenset[int] = frozenset(),
    ) -> list[Said]:
        if not self.template.has_markers:
            if speech is not None:
                return speech.said
            if others:
                raise BadRow(
                    Reason.TEMPLATE, f"where turn {min(others) + 1} is in the text is unknown; it cannot be trained"
                )
            return self._listener.by_prefixes(messages, conversation.tools, text)
        _, passages = self.template.render_marked(messages, conversation.tools)
        spoken = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
        numbers = spoken if len(spoken) == len(passages) else [-1] * len(passages)
        said = [self._listener.closed(text, n, start, end) for n, (start, end) in zip(numbers, passages, strict=True)]
        if speech is not None:
            for own in speech.said:
                if own.message in others:
                    said.append(own)
                for one in said:
                    if one.message == own.message and one is not own:
                        one.thoughts = [(max(start, one.start), end) for start, end in own.thoughts if end <= one.end]
        return said

    def _shape(self, turns: list[Turn], conversation: Conversation, wants_thoughts: bool) -> Shape | None:
        if conversation.tools is not None:
            return None
        for turn in turns:
            if turn.extra is not None or (turn.weight and turn.role != ASSISTANT) or not turn.content.strip():
                return None
            if turn.role == ASSISTANT and (
                LEADING_TAG.match(turn.content) or (wants_thoughts and len(pieces(turn.content)) > 1)
            ):
                return None
        roles = tuple([turn.role for turn in turns])
        if roles not in self._shapes:
            if len(self._shapes) >= MAX_SHAPES:
                return None
            self._shapes[roles] = self._learn(roles)
        return self._shapes[roles]

    def _learn(self, roles: tuple[str, ...]) -> Shape | None:
        turns = [Turn(role, f"word{number}") for number, role in enumerate(roles)]
        conversation = Conversation(turns)
        try:
            messages, text = self.template.settle(turns, conversation)
            speech = self._listener.listen(messages, None, text)
            if speech is None:
                return None
            return shape_of(text, speech.places, self._said(messages, conversation, text, speech), len(turns))
        except (BadRow, *TEMPLATE_ERRORS):
            return None


def _lost(messages: Messages, conversation: Conversation, text: str, speech: Speech | None) -> set[str]:
    """What no mark speaks for and is not in the text."""
    lost = set()
    for tool in conversation.tools or ():
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name not in text:
            lost.add("list of tools")
    marked = {anchor.message for anchor in speech.anchors} if speech is not None else set()
    for number, message in enumerate(messages):
        if number in marked:
            continue
        for content, kind in (
            pieces(message["content"] or "") if message["role"] == ASSISTANT else [(message["content"], None)]
        ):
            core = content.strip()
            if core and core not in text and json.dumps(core, ensure_ascii=False)[1:-1] not in text:
                if message["role"] == ASSISTANT:
                    lost.add(THOUGHTS if kind is Kind.THOUGHT else "answer")
                else:
                    lost.add(_GONE.get(message["role"], "user turn"))
    return lost
