"""Templates of the ChatML kind: <|im_start|>role, what is said, <|im_end|>; with what each family adds to it.

Data only: Jinja text. Refuses to know tokenizers. All white space outside of what is printed is stripped.
"""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\\n' }}{% else %}{{ message['content'] + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' + '\\n' }}{% endif %}"
)
"""The `chatml` template, with generation markers around what the assistant says and its end marker."""

THOUGHT = """
{%- set body = m.content or '' -%}
{%- set thought = '' -%}
{%- if m.reasoning_content is string -%}
  {%- set thought = m.reasoning_content.strip('\\n') -%}
{%- elif '</think>' in body -%}
  {%- set thought = body.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
  {%- set body = body.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
"""
"""An answer `m` as its thought and its body."""

LAST_QUESTION = """
{%- set at = namespace(last=-1) -%}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}{%- set at.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
"""
"""Index of the last question, `at.last`."""

_SYSTEM_WITH_TOOLS = """
{%- set lead = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set lead = messages[0].content -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools or lead -%}
  {{- '<|im_start|>system\\n' + lead -}}
  {%- if tools -%}
    {{- '\\n\\n' if lead -}}
    {{- '# Tools\\n\\nThese functions can be called:\\n<tools>\\n' -}}
    {%- for tool in tools -%}{{- (tool | tojson) + '\\n' -}}{%- endfor -%}
    {{- '</tools>\\n\\nTo call one, write:\\n<tool_call>\\nCALL\\n</tool_call>' -}}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endif -%}
"""

_JSON_CALLS = """
{%- for call in m.tool_calls or [] -%}
  {{- '\\n' if body or not loop.first -}}
  {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
  {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}
  {{- '}\\n</tool_call>' -}}
{%- endfor -%}
"""

_XML_CALLS = """
{%- for call in m.tool_calls or [] -%}
  {{- '\\n\\n' if body and loop.first else ('\\n' if not loop.first else '') -}}
  {{- '<tool_call>\\n<function=' + call.function.name + '>\\n' -}}
  {%- for name, value in (call.function.arguments or {}).items() -%}
    {{- '<parameter=' + name + '>\\n' -}}
    {{- value if value is string else value | tojson -}}
    {{- '\\n</parameter>\\n' -}}
  {%- endfor -%}
  {{- '</function>\\n</tool_call>' -}}
{%- endfor -%}
"""

_RESULT = """
{%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
"""

_JSON_EXAMPLE = '{"name": NAME, "arguments": {ARGUMENT: VALUE}}'
_XML_EXAMPLE = "<function=NAME>\\n<parameter=ARGUMENT>\\nVALUE\\n</parameter>\\n</function>"
_PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\nOPEN' -}}{%- endif -%}\n"


def _turns(answer: str, open_thought: str = "") -> str:
    return (
        "\n{%- for m in messages -%}\n{%- if m.role == 'assistant' -%}\n{{- '<|im_start|>assistant\\n' -}}"
        + answer
        + "{{- '<|im_end|>\\n' -}}\n{%- elif m.role == 'tool' -%}"
        + _RESULT
        + "{%- else -%}\n{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}\n{%- endif -%}\n{%- endfor -%}\n"
        + _PROMPT.replace("OPEN", open_thought)
    )


_PLAIN = "\n{%- set body = m.content or '' -%}\n{{- body -}}\n"
_THINKING = (
    THOUGHT
    + """{%- if loop.index0 > at.last and (thought or loop.last) -%}
  {{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- body -}}
"""
)
_ALWAYS_THINKING = _THINKING.replace(" and (thought or loop.last)", "")

QWEN_25 = _SYSTEM_WITH_TOOLS.replace("CALL\\n", _JSON_EXAMPLE + "\\n") + _turns(_PLAIN + _JSON_CALLS)
"""Qwen 2 and 2.5."""

QWEN3 = _SYSTEM_WITH_TOOLS.replace("CALL\\n", _JSON_EXAMPLE + "\\n") + LAST_QUESTION + _turns(_THINKING + _JSON_CALLS)
"""Thoughts stand in the answers behind the last question; the last answer has a think block, empty where it has none."""

QWEN3_5 = (
    _SYSTEM_WITH_TOOLS.replace("CALL\\n", _XML_EXAMPLE + "\\n")
    + LAST_QUESTION
    + _turns(_ALWAYS_THINKING + _XML_CALLS, "<think>\\n")
)
"""As Qwen3, with calls as tags; the prompt opens the think block."""

FALCON_H1 = "{{- bos_token or '' -}}" + QWEN_25

PHI_4 = """
{%- for m in messages -%}
  {{- '<|im_start|>' + m.role + '<|im_sep|>' + (m.content or '') + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|im_sep|>' -}}{%- endif -%}
"""
