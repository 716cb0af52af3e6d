"""Command A's format: what is said to people stands in a response, what is done in actions, and what came of it in results.

Data only: Jinja text, under the conventions of chatml.py. The family's own template begins every conversation with pages of
instructions, which a base that was trained on them expects (model.chat_template: tokenizer); these begin with the data's own.
"""

from __future__ import annotations

from trainer.run.chat_templates.chatml import THOUGHT

_COMMAND_A = (
    """
{%- macro head(role) -%}
  {{- '<|START_OF_TURN_TOKEN|>' -}}
  {{- {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}.get(role, '<|SYSTEM_TOKEN|>') -}}
{%- endmacro -%}
{%- macro result(number, values) -%}
  {{- '    {\\n        "tool_call_id": "' ~ number ~ '",\\n        "results": {\\n' -}}
  {%- for value in values -%}
    {{- '            "' ~ loop.index0 ~ '": ' ~ (value | tojson) ~ ('' if loop.last else ',') ~ '\\n' -}}
  {%- endfor -%}
  {{- '        },\\n        "is_error": null\\n    }' -}}
{%- endmacro -%}
{%- set end = '<|END_OF_TURN_TOKEN|>' -%}
{%- set at = namespace(ids=[], results=0) -%}
{{- bos_token -}}
{%- set lead = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set lead = messages[0].content | trim -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools or lead -%}
  {{- head('system') + lead -}}
  {%- if tools -%}
    {{- ('\\n\\n' if lead) ~ '## Available Tools\\nThese can be called, several at once:\\n\\n```json\\n[\\n' -}}
    {%- for tool in tools -%}
      {%- set f = tool.function or tool -%}
      {{- '    {"name": ' ~ (f.name | tojson) ~ ', "description": ' ~ ((f.description or '') | tojson) -}}
      {{- ', "parameters": ' ~ ((f.parameters or {}) | tojson) ~ ', "responses": null}' ~ ('' if loop.last else ',') ~ '\\n' -}}
    {%- endfor -%}
    {{- ']\\n```' -}}
  {%- endif -%}
  {{- end -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}"""
    + THOUGHT
    + """
    {{- head(m.role) -}}
    {%- if m.tool_calls -%}
      {%- set plan = thought or body -%}
      {{- '<|START_THINKING|>' + plan + '<|END_THINKING|>' if plan -}}
      {{- '<|START_ACTION|>[\\n' -}}
      {%- for call in m.tool_calls -%}
        {{- '    {"tool_call_id": "' ~ (at.ids | length) ~ '", "tool_name": "' ~ call.function.name ~ '", "parameters": ' -}}
        {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}
        {{- '}' ~ ('' if loop.last else ',') ~ '\\n' -}}
        {%- set at.ids = at.ids + [call.id or ''] -%}
      {%- endfor -%}
      {{- ']<|END_ACTION|>' -}}
    {%- else -%}
      {{- '<|START_RESPONSE|>' + body + '<|END_RESPONSE|>' -}}
    {%- endif -%}
    {{- end -}}
  {%- elif m.role == 'tool' -%}
    {{- head('tool') + '<|START_TOOL_RESULT|>[\\n' if loop.first or loop.previtem.role != 'tool' -}}
    {{- result(at.ids.index(m.tool_call_id) if m.tool_call_id in at.ids else at.results, [m.content]) -}}
    {%- set at.results = at.results + 1 -%}
    {{- '\\n]<|END_TOOL_RESULT|>' + end if loop.last or loop.nextitem.role != 'tool' else ',\\n' -}}
  {%- else -%}
    {{- head(m.role) + m.content + end -}}
    {%- if documents and not at.ids -%}
      {%- set at.ids = ['documents'] -%}
      {%- set at.results = 1 -%}
      {{- head('assistant') + '<|START_ACTION|>[\\n    {"tool_call_id": "0", "tool_name": "direct-injected-document", ' -}}
      {{- '"parameters": {}}\\n]<|END_ACTION|>' + end + head('tool') + '<|START_TOOL_RESULT|>[\\n' -}}
      {{- result(0, documents) + '\\n]<|END_TOOL_RESULT|>' + end -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- head('assistant') -}}OPEN{%- endif -%}
"""
)

COMMAND_A = _COMMAND_A.replace("OPEN", "{{- '' if tools or documents else '<|START_RESPONSE|>' -}}")
"""Without functions the prompt opens the response."""

COMMAND_A_TOOL_USE = _COMMAND_A.replace("OPEN", "")
"""Also with documents: they stand behind the first question as the result of a call that nobody made."""
