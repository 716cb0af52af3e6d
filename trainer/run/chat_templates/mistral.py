"""Mistral's templates: [INST], the question, [/INST], the answer, the end token; they differ in spaces, in where a system
message stands, and in whether functions have a place.

Data only: Jinja text, under the conventions of chatml.py.
"""

from __future__ import annotations

from trainer.run.chat_templates.chatml import LAST_QUESTION

_SYSTEM = """
{%- set lead = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set lead = messages[0].content -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
"""

_CALLS = """
    {{- '[TOOL_CALLS]SPACE[' -}}
    {%- for call in m.tool_calls -%}
      {{- '{"name": "' + call.function.name + '", "arguments": ' -}}
      {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}
      {{- ', "id": "' + (call.id or 'call%05d' | format(loop.index)) + '"}' + ('' if loop.last else ', ') -}}
    {%- endfor -%}
    {{- ']' -}}
"""

_RESULT = """
    {{- '[TOOL_RESULTS]SPACE{"content": ' + (m.content | tojson) + ', "call_id": "' + (m.tool_call_id or 'call00001') -}}
    {{- '"}[/TOOL_RESULTS]' -}}
"""

V1 = (
    _SYSTEM
    + """
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}{{- ' ' + (m.content or '') + eos_token -}}
  {%- else -%}{{- ' [INST] ' + (lead + '\\n\\n' if lead and loop.first else '') + m.content + ' [/INST]' -}}
  {%- endif -%}
{%- endfor -%}
"""
)


def _with_tools(space: str, system: str, question: str, tools: str) -> str:
    return (
        _SYSTEM
        + LAST_QUESTION
        + "{{- bos_token -}}\n"
        + system
        + "{%- for m in messages -%}\n  {%- if m.role == 'assistant' -%}\n"
        + "    {{- ('SPACE' if m.content else '') + (m.content or '') -}}\n    {%- if m.tool_calls -%}"
        + _CALLS
        + "    {%- endif -%}\n    {{- eos_token -}}\n  {%- elif m.role == 'tool' -%}"
        + _RESULT
        + "  {%- else -%}\n"
        + tools
        + question
        + "  {%- endif -%}\n{%- endfor -%}\n"
    ).replace("SPACE", space)


_TOOLS = """    {%- if tools and loop.index0 == at.last -%}
      {{- '[AVAILABLE_TOOLS]SPACE' + (tools | tojson) + '[/AVAILABLE_TOOLS]' -}}
    {%- endif -%}
"""
_LAST_WITH_SYSTEM = """    {{- '[INST]SPACE' + (lead + '\\n\\n' if lead and loop.index0 == at.last else '') + m.content + '[/INST]' -}}
"""

V2V3 = _with_tools(" ", "", _LAST_WITH_SYSTEM, _TOOLS)
"""7B v0.2 and v0.3, Mixtral: the system message and the functions stand at the last question."""

V3_TEKKEN = _with_tools("", "", _LAST_WITH_SYSTEM, _TOOLS)
"""Nemo, Ministral, Pixtral."""

V7_TEKKEN = _with_tools(
    "",
    "{%- if lead -%}{{- '[SYSTEM_PROMPT]' + lead + '[/SYSTEM_PROMPT]' -}}{%- endif -%}\n"
    "{%- if tools -%}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}\n",
    "    {{- '[INST]' + m.content + '[/INST]' -}}\n",
    "",
)
"""Small 3 and later: system message and functions have a place of their own, before everything."""
