"""ChatTemplate: the tokenizer's template, compiled once, and the forms in which it takes what a conversation holds.

Owns what a template is given: the variables, tools and functions of one that knows none, ids and arguments of function
calls in the form that it takes. Refuses to know tokens and masks. What it writes is what `apply_chat_template` writes for
the same messages. One thing is pinned: a template that asks for today's date gets a fixed one, because the data of a run
must not depend on the day on which it was prepared.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
from transformers.utils.chat_template_utils import (
    _compile_jinja_template as compile_template,
)
from transformers.utils.chat_template_utils import (
    _render_with_assistant_indices as render_with_markers,
)

from trainer.data.anchors import REASONING
from trainer.run.bounded import TookTooLong, cpu_seconds, memory_bytes
from trainer.run.exits import BadInput
from trainer.run.formats.conversation import SYSTEM, TOOL, BadRow, Conversation, Reason, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = list[dict[str, Any]]

RENDER_CPU_S = 20.0
"""Of a processor, for one text: it takes milliseconds."""
RENDER_BYTES = 1 << 30
"""Of memory, for one text beyond what the process holds: it takes some times its length."""
PINNED_DATE = datetime(2024, 7, 26)
"""What `strftime_now` in a template sees."""

TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What a template raises that refuses its messages."""

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplate:
    """One of a tokenizer's templates."""

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        self._variables = variables
        with _ending():  # Jinja works out what is constant while it compiles
            self._template = compile_template(source)
        self._template.environment.globals["strftime_now"] = PINNED_DATE.strftime
        self.has_markers = bool(_MARKER.search(source))
        self.uses_tools = bool(re.search(r"\btools\b", source))
        self.uses_calls = "tool_calls" in source
        self._forms = [0] if not self.uses_calls else list(range(len(_FORMS)))

    def render(self, messages: Messages, tools: Any = None, add_generation_prompt: bool = False) -> str:
        """Raises what is in TEMPLATE_ERRORS; BadInput for a template that does not come to an end, or takes too much memory."""
        with _ending():
            found: str = self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        return found

    def render_marked(self, messages: Messages, tools: Any) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the passages that the template marks with {% generation %}."""
        with _ending():
            marked: tuple[str, list[tuple[int, int]]] = render_with_markers(
                self._template, messages, tools, None, False, **self._variables
            )
        return marked

    def settle(self, turns: list[Turn], conversation: Conversation) -> tuple[Messages, str]:
        """The messages in the first form that the template writes without an error and without losing a call, and the
        text. Raises BadRow with the template's own words where there is none."""
        messages = self._messages(turns, conversation)
        tools = conversation.tools
        if not any("tool_calls" in message or message["role"] == TOOL for message in messages):
            try:
                return messages, self.render(messages, tools)
            except TEMPLATE_ERRORS as error:
                raise _refused(error) from error
        first: Exception | None = None
        fallback: tuple[Messages, str] | None = None
        for form in list(self._forms):
            formed = _FORMS[form](messages)
            try:
                text = self.render(formed, tools)
            except TEMPLATE_ERRORS as error:
                first = first or error
                continue
            if _writes_calls(formed, text):
                if form != self._forms[0]:  # what held for one conversation is tried first for the next
                    self._forms.remove(form)
                    self._forms.insert(0, form)
                return formed, text
            fallback = fallback or (formed, text)
        if fallback is not None:
            return fallback
        assert first is not None
        raise _refused(first) from first

    def _messages(self, turns: list[Turn], conversation: Conversation) -> Messages:
        messages = [_aliased(turn.message()) for turn in turns]
        if not self.uses_calls:
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


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    try:
        with cpu_seconds(RENDER_CPU_S), memory_bytes(RENDER_BYTES):
            yield
    except MemoryError:
        raise BadInput(
            f"the chat template took more than {RENDER_BYTES >> 20:,} MiB of memory for one conversation; does it repeat itself?"
        ) from None
    except TookTooLong:
        raise BadInput(
            f"the chat template had not ended after {RENDER_CPU_S:.0f} s of one conversation; does it loop?"
        ) from None


def templates_of(tokenizer: PreTrainedTokenizerFast) -> tuple[ChatTemplate, ChatTemplate]:
    """The template for conversations without tools and the one for those with: the same, but where a tokenizer brings
    one called `tool_use`."""
    variables = dict(tokenizer.special_tokens_map)
    source = tokenizer.chat_template
    if not isinstance(source, dict):
        own = ChatTemplate(source, variables)
        return own, own
    default = ChatTemplate(source["default"], variables)
    return default, ChatTemplate(source["tool_use"], variables) if "tool_use" in source else default


def _refused(error: Exception) -> BadRow:
    return BadRow(Reason.TEMPLATE, str(error).strip() or type(error).__name__)


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under the names that templates read it by, as transformers does."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


# -- the forms of a function call ---------------------------------------------------------------------------------------


def _as_it_is(messages: Messages) -> Messages:
    return messages


def _arguments_as_text(messages: Messages) -> Messages:
    """DeepSeek's templates join the arguments to a text; others take an object."""

    def form(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            return call
        text = getattr(arguments, "text", None) or json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    return [
        {**message, "tool_calls": [form(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _with_ids(messages: Messages) -> Messages:
    """Mistral's templates insist on nine letters or digits for a call, and on the same for its result."""
    out, waiting, number = [], [], 0
    for message in messages:
        if "tool_calls" in message:
            calls = []
            for call in message["tool_calls"]:
                number += 1
                own = str(call.get("id") or "")
                name = own if re.fullmatch("[A-Za-z0-9]{9}", own) else f"call{number:05d}"
                waiting.append((own, name))
                calls.append({**call, "id": name})
            message = {**message, "tool_calls": calls}
        elif message["role"] == TOOL:
            asked = message.get("tool_call_id")
            pair = next((pair for pair in waiting if asked and pair[0] == asked), waiting[0] if waiting else ("", ""))
            if pair in waiting:
                waiting.remove(pair)
            message = {**message, "tool_call_id": pair[1] or "call00000"}
        out.append(message)
    return out


def _without_content(messages: Messages) -> Messages:
    """Some templates write the calls of a message only where it has no content."""
    return [
        {**message, "content": None} if "tool_calls" in message and not message["content"] else message
        for message in messages
    ]


_FORMS: tuple[Callable[[Messages], Messages], ...] = (
    _as_it_is,
    _arguments_as_text,
    _with_ids,
    lambda messages: _with_ids(_arguments_as_text(messages)),
    _without_content,
    lambda messages: _without_content(_arguments_as_text(messages)),
)


def _writes_calls(messages: Messages, text: str) -> bool:
    """Whether every call's name is there, and no arguments as Python would print them."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            function = call["function"]
            if function["name"] not in text:
                return False
            arguments = function.get("arguments")
            if not arguments or isinstance(arguments, str):
                continue
            if repr(arguments) in text and repr(arguments) != json.dumps(arguments, ensure_ascii=False):
                return False
    return True
