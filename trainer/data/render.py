"""Renders conversations with the chat template and finds what the assistant said in the text, for any template.

Owns character spans and their weights. Refuses to know tokens and files. The text is what `apply_chat_template` renders:
the same compiled template, the same variables. One thing is pinned: a template that asks for today's date gets a fixed
one, because the data of a run must not depend on the day on which it was prepared.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from transformers.utils.chat_template_utils import (
    _compile_jinja_template as compile_template,
)
from transformers.utils.chat_template_utils import (
    _render_with_assistant_indices as render_with_markers,
)

from trainer.run.formats.conversation import ASSISTANT, SYSTEM, BadRow, Conversation, Reason, Segment, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PINNED_DATE = datetime(2024, 7, 26)
"""What `strftime_now` in a template sees."""

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_PRIVATE_USE = [chr(code) for code in range(0xE0F0, 0xE100)]


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
    """One template, compiled once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, train_on_inputs: bool, last_turn_only: bool) -> None:
        source = tokenizer.chat_template
        self._train_on_inputs = train_on_inputs
        self._last_turn_only = last_turn_only
        self._variables = dict(tokenizer.special_tokens_map)
        self._template = compile_template(source)
        self._template.environment.globals["strftime_now"] = PINNED_DATE.strftime
        self._has_markers = bool(_MARKER.search(source))
        self.uses_tools = bool(re.search(r"\btools\b", source))
        self._uses_tool_calls = "tool_calls" in source
        self._end_token: str = tokenizer.eos_token
        self._special_tokens = tuple(
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content
        )

    def render(self, conversation: Conversation) -> Rendered:
        """The text and its trained spans. Raises BadRow where the template refuses the conversation or hides a turn."""
        if conversation.text is not None:
            return Rendered(conversation.text, [Span(0, len(conversation.text), 1.0)])
        if conversation.segments is not None:
            return self._joined(conversation.segments)
        messages = self._messages(conversation)
        try:
            if self._has_markers:
                text, found = render_with_markers(
                    self._template, messages, conversation.tools, None, False, **self._variables
                )
                found = [self._closed(text, start, end) for start, end in found]
            else:
                text = self._plain(messages, conversation.tools)
                found = self._by_sentinels(messages, conversation.tools, text) or self._by_prefixes(
                    messages, conversation.tools, text
                )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise BadRow(Reason.TEMPLATE, str(error).strip() or type(error).__name__) from error
        return Rendered(text, self._weigh(conversation.turns, text, found))

    def _joined(self, segments: list[Segment]) -> Rendered:
        text, spans = "", []
        for segment in segments:
            if self._train_on_inputs or segment.is_trained:
                spans.append(Span(len(text), len(text) + len(segment.text), 1.0))
            text += segment.text
        return Rendered(text, spans[-1:] if self._last_turn_only else spans)

    # -- what the template is given -----------------------------------------------------------------------------------

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        messages = [_aliased(turn.message()) for turn in conversation.turns]
        if not self._uses_tool_calls:
            for message in messages:
                if "tool_calls" in message:
                    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.pop("tool_calls")]
                    message["content"] = "\n".join(filter(None, [message["content"], *calls]))
        if conversation.tools and not self.uses_tools:
            listed = json.dumps(conversation.tools, ensure_ascii=False)
            if messages[0]["role"] == SYSTEM:
                messages[0]["content"] += f"\n\n{listed}"
            else:
                messages.insert(0, {"role": SYSTEM, "content": listed})
        return messages

    def _plain(self, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool = False) -> str:
        return self._template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )

    # -- where the assistant's words are ------------------------------------------------------------------------------

    def _by_sentinels(self, messages: list[dict[str, Any]], tools: Any, text: str) -> list[tuple[int, int]] | None:
        """Render again with a private character on either side of what the assistant says; without them the text must be
        the same. None where it is not (a template that takes contents apart), or where functions are called."""
        if any(message["role"] == ASSISTANT and "tool_calls" in message for message in messages):
            return None
        unused = [character for character in _PRIVATE_USE if character not in text]
        if len(unused) < 2:
            return None
        opening, closing = unused[:2]
        turns = sum(message["role"] == ASSISTANT for message in messages)
        for trimmed in (False, True):
            marked = self._plain([_wrapped(message, opening, closing, trimmed) for message in messages], tools)
            if marked.count(opening) != turns or marked.count(closing) != turns:
                continue
            if marked.replace(opening, "").replace(closing, "") != text:
                continue
            spans, at = [], -1
            for number in range(turns):
                start = marked.find(opening, at + 1)
                at = marked.find(closing, start + 1)
                spans.append((start - 2 * number, self._end_marker(text, at - 2 * number - 1)))
            return spans
        return None

    def _by_prefixes(self, messages: list[dict[str, Any]], tools: Any, text: str) -> list[tuple[int, int]]:
        """What a turn adds to the rendering of the turns before it, behind the header that asks for it.

        Raises BadRow where the beginning of the text depends on what follows.
        """
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._plain(messages[:number], tools)
            asked = self._plain(messages[:number], tools, add_generation_prompt=True)
            after = text if number + 1 == len(messages) else self._plain(messages[: number + 1], tools)
            if not (text.startswith(after) and text.startswith(before) and len(before) < len(after)):
                raise BadRow(
                    Reason.TEMPLATE,
                    f"turn {number + 1} is written differently with and without what follows, so that its mask is "
                    "unknown; mark the assistant's words in the template with {% generation %}",
                )
            start = max(len(before), _common_prefix(asked, text))
            end = len(text[:start] + text[start : len(after)].rstrip())
            spans.append(self._closed(text, start, max(start, end)))
        return spans

    def _weigh(self, turns: list[Turn], text: str, found: list[tuple[int, int]]) -> list[Span]:
        spoken = [turn for turn in turns if turn.role == ASSISTANT]
        weights = [1.0 if turn.weight is None else turn.weight for turn in spoken]
        if len(found) != len(spoken):
            if self._last_turn_only or any(weight != 1.0 for weight in weights):
                raise BadRow(
                    Reason.TEMPLATE,
                    f"the template marks {len(found)} passages for {len(spoken)} assistant turns, so that it is "
                    "unclear which weight is whose",
                )
            weights = [1.0] * len(found)
        if self._last_turn_only:
            weights = [0.0] * (len(weights) - 1) + weights[-1:]
        spans = [Span(0, len(text), 1.0)] if self._train_on_inputs else []
        for (start, end), weight in zip(found, weights, strict=True):
            spans.append(Span(start, end, weight))
        return spans

    def _closed(self, text: str, start: int, end: int) -> tuple[int, int]:
        """A passage with its end marker, where it does not hold one already."""
        return (start, end if text[start:end].endswith(self._special_tokens) else self._end_marker(text, end))

    def _end_marker(self, text: str, end: int) -> int:
        """Where the marker behind a turn ends: a special token right behind it, or the end token behind white space."""
        for token in self._special_tokens:
            if text.startswith(token, end):
                return end + len(token)
        behind = end
        while behind < len(text) and text[behind].isspace():
            behind += 1
        return behind + len(self._end_token) if text.startswith(self._end_token, behind) else end


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under the names that templates read it by, as transformers does."""
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _wrapped(message: dict[str, Any], opening: str, closing: str, trimmed: bool) -> dict[str, Any]:
    if message["role"] != ASSISTANT:
        return message
    content = message["content"]
    if not trimmed:
        return {**message, "content": opening + content + closing}
    core = content.strip()
    lead = content[: len(content) - len(content.lstrip())]
    return {**message, "content": lead + opening + core + closing + content[len(lead) + len(core) :]}


def _common_prefix(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
