"""What the chat templates of today's model families do, each in words of our own: a tokenizer's special tokens, its
template, and what the model must write of the same conversations."""

from __future__ import annotations

from typing import Any, NamedTuple

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def call(city: str, **identity: str) -> dict[str, Any]:
    return {"type": "function", **identity, "function": {"name": "get_weather", "arguments": {"city": city}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **extra}


PLAIN = [user("Hi"), assistant("Hello."), user(" And you?\n"), assistant("Fine.\n")]
SYSTEM = [{"role": "system", "content": "Be kind."}, *PLAIN]
TOOLS = [
    user("Oslo?"),
    assistant("", tool_calls=[call("Oslo", id="aaaaaaaa1")]),
    {"role": "tool", "content": "three", "tool_call_id": "aaaaaaaa1", "name": "get_weather"},
    assistant("", tool_calls=[call("Bergen", id="aaaaaaaa2")]),
    {"role": "tool", "content": "nine", "tool_call_id": "aaaaaaaa2", "name": "get_weather"},
    assistant("Three and nine."),
    user("Thanks"),
    assistant("Welcome."),
]
THOUGHTS = [
    user("2+2?"),
    assistant("4", reasoning_content="two and two"),
    user("3+3?"),
    assistant("6", reasoning_content="three and three"),
]
INLINE = [
    user("2+2?"),
    assistant("<think>\ntwo and two\n</think>\n\n4"),
    user("3+3?"),
    assistant("<think>\nthree and three\n</think>\n\n6"),
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": PLAIN, "system": SYSTEM, "tools": TOOLS, "thoughts": THOUGHTS, "inline": INLINE,
}  # fmt: skip


class Family(NamedTuple):
    special: tuple[str, ...]
    """The tokens of its format."""
    end: str
    """The tokenizer's end token."""
    template: str
    trained: dict[str, list[str]]
    """Of each conversation that the family takes what the model must write."""
    gone: dict[str, set[str]] | None = None
    """Of each conversation what the template leaves out."""
    end_tokens: tuple[str, ...] = ()
    """What generation stops at, where it is not the end token alone."""
    moves_tools: bool = False
    """Tools have no place in it."""


_LAST_QUESTION = (
    "{% set at = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set at.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)

CHATML = Family(
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    {
        "plain": ["Hello.<|im_end|>", "Fine.\n<|im_end|>"],
        "system": ["Hello.<|im_end|>", "Fine.\n<|im_end|>"],
        "thoughts": ["4<|im_end|>", "6<|im_end|>"],
        "inline": [
            "<think>\ntwo and two\n</think>\n\n4<|im_end|>",
            "<think>\nthree and three\n</think>\n\n6<|im_end|>",
        ],
        "tools": [
            '{"name": "get_weather", "arguments": {"city": "Oslo"}}<|im_end|>',
            '{"name": "get_weather", "arguments": {"city": "Bergen"}}<|im_end|>',
            "Three and nine.<|im_end|>",
            "Welcome.<|im_end|>",
        ],
    },
    {"thoughts": {"thoughts", "thoughts of earlier answers"}},
    moves_tools=True,
)

LLAMA31 = Family(
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    "<|eot_id|>",
    "{{ bos_token }}{% macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro %}"
    "{% if messages[0].role == 'system' %}{% set lead = messages[0].content | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set lead = '' %}{% endif %}"
    "{{ head('system') }}{% if tools %}{{ 'Environment: ipython\\n' }}{% endif %}{{ lead + '<|eot_id|>' }}"
    "{% for m in messages %}"
    "{% if tools and loop.first %}{{ head('user') }}{% for t in tools %}{{ t | tojson(indent=4) + '\\n\\n' }}{% endfor %}"
    "{{ m.content | trim + '<|eot_id|>' }}"
    "{% elif m.role == 'tool' %}{{ head('ipython') }}{{ m.content | tojson }}{{ '<|eot_id|>' }}"
    "{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{{ head('assistant') }}{{ '{\"name\": \"' + m.tool_calls[0].function.name + '\", \"parameters\": ' }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|eot_id|>' }}"
    "{% else %}{{ head(m.role) }}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}",
    {
        "plain": ["Hello.<|eot_id|>", "Fine.<|eot_id|>"],
        "system": ["Hello.<|eot_id|>", "Fine.<|eot_id|>"],
        "tools": [
            '{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eot_id|>',
            '{"name": "get_weather", "parameters": {"city": "Bergen"}}<|eot_id|>',
            "Three and nine.<|eot_id|>",
            "Welcome.<|eot_id|>",
        ],
        "thoughts": ["4<|eot_id|>", "6<|eot_id|>"],
        "inline": [
            "<think>\ntwo and two\n</think>\n\n4<|eot_id|>",
            "<think>\nthree and three\n</think>\n\n6<|eot_id|>",
        ],
    },
    {"thoughts": {"thoughts", "thoughts of earlier answers"}},
)

_QWEN_CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '\\n' if not loop.first or body }}{{ '<tool_call>\\n{\"name\": \"' + c.function.name"
    ' + \'", "arguments": \' }}{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}'
    "{{ '}\\n</tool_call>' }}{% endfor %}"
)
QWEN3 = Family(
    (
        "<|im_start|>",
        "<|im_end|>",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
    ),
    "<|im_end|>",
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}"
    "{% endif %}{% for t in tools %}{{ t | tojson + '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}"
    "{% set at = namespace(last=messages | length - 1, seeking=true) %}{% for m in messages[::-1] %}"
    "{% if at.seeking and m.role == 'user' and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{% set at.seeking = false %}{% set at.last = messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}"
    "{% elif m.role == 'assistant' %}{% set body = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}{% elif '</think>' in body %}"
    "{% set thought = body.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{% set body = body.split('</think>')[-1].lstrip('\\n') %}{% endif %}{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.index0 > at.last and (loop.last or thought) %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}"
    "{{ body.lstrip('\\n') }}{% else %}{{ body }}{% endif %}" + _QWEN_CALLS + "{{ '<|im_end|>\\n' }}"
    "{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}",
    {
        "plain": ["Hello.<|im_end|>", "<think>\n\n</think>\n\nFine.\n<|im_end|>"],
        "system": ["Hello.<|im_end|>", "<think>\n\n</think>\n\nFine.\n<|im_end|>"],
        "tools": [
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bergen"}}\n</tool_call><|im_end|>',
            "Three and nine.<|im_end|>",
            "<think>\n\n</think>\n\nWelcome.<|im_end|>",
        ],
        "thoughts": ["4<|im_end|>", "<think>\nthree and three\n</think>\n\n6<|im_end|>"],
        "inline": ["4<|im_end|>", "<think>\nthree and three\n</think>\n\n6<|im_end|>"],
    },
    {"thoughts": {"thoughts of earlier answers"}, "inline": {"thoughts of earlier answers"}},
)

_ALTERNATE = (
    "{% set n = namespace(i=0) %}{% for m in messages %}{% if m.role in ('user', 'assistant') and not m.tool_calls %}"
    "{% if (m.role == 'user') != (n.i % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set n.i = n.i + 1 %}{% endif %}{% endfor %}"
)


def _mistral(space: str) -> str:
    """v0.3 with a space, Nemo without. The tools stand before the last question, the system message in it; calls have ids
    of nine letters and digits, and so have their results."""
    return (
        "{{ bos_token }}{% set lead = '' %}{% if messages[0].role == 'system' %}{% set lead = messages[0].content + '\\n\\n' %}"
        "{% set messages = messages[1:] %}{% endif %}" + _ALTERNATE + _LAST_QUESTION + "{% for m in messages %}"
        "{% if m.role == 'user' %}{% if tools and loop.index0 == at.last %}{{ '[AVAILABLE_TOOLS]" + space + "' }}"
        "{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{{ '[INST]" + space + "' + (lead if loop.index0 == at.last else '') + m.content + '[/INST]' }}"
        "{% elif m.tool_calls %}{{ '[TOOL_CALLS]" + space + "[' }}{% for c in m.tool_calls %}"
        "{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
        "{{ (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' }}{{ ', ' if not loop.last }}{% endfor %}{{ ']' + eos_token }}"
        "{% elif m.role == 'tool' %}{% if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}"
        "{{ raise_exception('ids have nine characters') }}{% endif %}"
        "{{ '[TOOL_RESULTS]"
        + space
        + '{"content": \' + m.content | string + \', "call_id": "\' + m.tool_call_id + \'"}[/TOOL_RESULTS]\' }}'
        "{% else %}{{ '" + space + "' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
    )


def _mistral_trained(space: str) -> dict[str, list[str]]:
    def calls(city: str, identity: str) -> str:
        return (
            f'[TOOL_CALLS]{space}[{{"name": "get_weather", "arguments": {{"city": "{city}"}}, "id": "{identity}"}}]</s>'
        )

    return {
        "plain": [f"{space}Hello.</s>", f"{space}Fine.</s>"],
        "system": [f"{space}Hello.</s>", f"{space}Fine.</s>"],
        "tools": [calls("Oslo", "aaaaaaaa1"), calls("Bergen", "aaaaaaaa2"), f"{space}Three and nine.</s>", f"{space}Welcome.</s>"],
        "thoughts": [f"{space}4</s>", f"{space}6</s>"],
        "inline": [f"{space}<think>\ntwo and two\n</think>\n\n4</s>", f"{space}<think>\nthree and three\n</think>\n\n6</s>"],
    }  # fmt: skip


_MISTRAL_TOKENS = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
_NO_THOUGHTS = {"thoughts": {"thoughts", "thoughts of earlier answers"}}
MISTRAL3 = Family(("<s>", "</s>", *_MISTRAL_TOKENS), "</s>", _mistral(" "), _mistral_trained(" "), _NO_THOUGHTS)
NEMO = Family(("<s>", "</s>", *_MISTRAL_TOKENS), "</s>", _mistral(""), _mistral_trained(""), _NO_THOUGHTS)

R1 = Family(
    (
        "<s>",
        "</s>",
        "<|User|>",
        "<|Assistant|>",
        "<|calls|>",
        "<|/calls|>",
        "<|output|>",
        "<|/output|>",
        "<think>",
        "</think>",
    ),
    "</s>",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' and m.tool_calls %}{{ '<|Assistant|><|calls|>' }}{% for c in m.tool_calls %}"
    "{{ c.function.name + '\\n```json\\n' + c.function.arguments + '\\n```' }}{% endfor %}{{ '<|/calls|></s>' }}"
    "{% elif m.role == 'assistant' %}{% set body = m.content %}{% if '</think>' in body %}"
    "{% set body = body.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + body + '</s>' }}"
    "{% elif m.role == 'tool' %}{{ '<|output|>' + m.content + '<|/output|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}",
    {
        "plain": ["Hello.</s>", "Fine.\n</s>"],
        "system": ["Hello.</s>", "Fine.\n</s>"],
        "tools": [
            '<|calls|>get_weather\n```json\n{"city": "Oslo"}\n```<|/calls|></s>',
            '<|calls|>get_weather\n```json\n{"city": "Bergen"}\n```<|/calls|></s>',
            "Three and nine.</s>",
            "Welcome.</s>",
        ],
        "thoughts": ["4</s>", "6</s>"],
        "inline": ["\n\n4</s>", "\n\n6</s>"],
    },
    {
        "thoughts": {"thoughts", "thoughts of earlier answers"},
        "inline": {"thoughts", "thoughts of earlier answers"},
    },
    moves_tools=True,
)

GEMMA = Family(
    ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "<eos>",
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    {
        "plain": ["Hello.<end_of_turn>", "Fine.<end_of_turn>"],
        "thoughts": ["4<end_of_turn>", "6<end_of_turn>"],
        "inline": [
            "<think>\ntwo and two\n</think>\n\n4<end_of_turn>",
            "<think>\nthree and three\n</think>\n\n6<end_of_turn>",
        ],
    },
    _NO_THOUGHTS,
    ("<eos>", "<end_of_turn>"),
)

PHI4 = Family(
    ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "<|im_end|>",
    "{% for m in messages %}{% if m.role in ('system', 'user') %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant<|im_sep|>' }}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
    {
        "plain": ["Hello.<|im_end|>", "Fine.\n<|im_end|>"],
        "system": ["Hello.<|im_end|>", "Fine.\n<|im_end|>"],
        "thoughts": ["4<|im_end|>", "6<|im_end|>"],
        "tools": [
            '{"name": "get_weather", "arguments": {"city": "Oslo"}}<|im_end|>',
            '{"name": "get_weather", "arguments": {"city": "Bergen"}}<|im_end|>',
            "Three and nine.<|im_end|>",
            "Welcome.<|im_end|>",
        ],
        "inline": [
            "<think>\ntwo and two\n</think>\n\n4<|im_end|>",
            "<think>\nthree and three\n</think>\n\n6<|im_end|>",
        ],
    },
    _NO_THOUGHTS | {"tools": {"tool result"}},
    moves_tools=True,
)

PHI3 = Family(
    ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "<|endoftext|>",
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
    {
        "plain": ["Hello.<|end|>", "Fine.\n<|end|>"],
        "system": ["Hello.<|end|>", "Fine.\n<|end|>"],
        "thoughts": ["4<|end|>", "6<|end|>"],
    },
    _NO_THOUGHTS,
    ("<|end|>", "<|endoftext|>"),
)

FALCON3 = Family(
    ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"),
    "<|endoftext|>",
    "{% for m in messages %}{% if m.role != 'assistant' %}{{ '<|' + m.role + '|>\\n' + m.content + '\\n' }}"
    "{% else %}{{ '<|assistant|>\\n' + m.content + eos_token + ('' if loop.last else '\\n') }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}",
    {
        "plain": ["Hello.<|endoftext|>", "Fine.\n<|endoftext|>"],
        "system": ["Hello.<|endoftext|>", "Fine.\n<|endoftext|>"],
        "thoughts": ["4<|endoftext|>", "6<|endoftext|>"],
    },
    _NO_THOUGHTS,
)

GLM4 = Family(
    ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    "<|endoftext|>",
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    {"plain": ["Hello.<|user|>", "Fine."], "system": ["Hello.<|user|>", "Fine."]},
    {},
    ("<|endoftext|>", "<|user|>", "<|observation|>"),
)

GPT_OSS = Family(
    ("<|endoftext|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
    "<|return|>",
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
    {
        "plain": ["<|channel|>final<|message|>Hello.", "<|channel|>final<|message|>Fine.\n<|return|>"],
        "thoughts": [
            "<|channel|>final<|message|>4",
            "<|channel|>analysis<|message|>three and three<|end|><|start|>assistant<|channel|>final<|message|>6<|return|>",
        ],
    },
    {"thoughts": {"thoughts of earlier answers"}},
    ("<|return|>", "<|endoftext|>", "<|call|>"),
)

FAMILIES = {
    "chatml": CHATML, "llama3.1": LLAMA31, "qwen3": QWEN3, "mistral-v0.3": MISTRAL3, "mistral-nemo": NEMO, "deepseek-r1": R1,
    "gemma": GEMMA, "phi4": PHI4, "phi3": PHI3, "falcon3": FALCON3, "glm4": GLM4, "gpt-oss": GPT_OSS,
}  # fmt: skip
