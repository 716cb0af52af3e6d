"""Templates in which a header says who speaks: Llama, Gemma, Phi-3, Command, EXAONE, Jamba, DeepSeek and older formats.

Data only: Jinja text, under the conventions of chatml.py.
"""

from __future__ import annotations

from trainer.run.chat_templates.chatml import LAST_QUESTION, THOUGHT

_LLAMA_CALL = """
{%- for call in m.tool_calls -%}
  {{- '\\n' if m.content or not loop.first -}}
  {{- '{"name": "' + call.function.name + '", "parameters": ' -}}
  {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}
  {{- '}' -}}
{%- endfor -%}
"""


def _llama(opening: str, closing: str, end: str) -> str:
    """Function results come from the role `ipython`; the functions stand in the system message."""
    return f"""
{{%- macro head(role) -%}}{{{{- '{opening}' + role + '{closing}\\n\\n' -}}}}{{%- endmacro -%}}
{{{{- bos_token or '' -}}}}
{{%- set lead = '' -%}}
{{%- if messages[0].role == 'system' -%}}
  {{%- set lead = messages[0].content | trim -%}}
  {{%- set messages = messages[1:] -%}}
{{%- endif -%}}
{{%- if tools or lead -%}}
  {{{{- head('system') + lead -}}}}
  {{%- if tools -%}}
    {{{{- '\\n\\n' if lead -}}}}
    {{{{- 'These functions can be called with {{"name": NAME, "parameters": {{ARGUMENT: VALUE}}}}:\\n\\n' -}}}}
    {{%- for tool in tools -%}}{{{{- (tool | tojson) + '\\n\\n' -}}}}{{%- endfor -%}}
  {{%- endif -%}}
  {{{{- '{end}' -}}}}
{{%- endif -%}}
{{%- for m in messages -%}}
  {{{{- head('ipython' if m.role == 'tool' else m.role) + (m.content or '') | trim -}}}}
  {{%- if m.tool_calls -%}}{_LLAMA_CALL}{{%- endif -%}}
  {{{{- '{end}' -}}}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- head('assistant') -}}}}{{%- endif -%}}
"""


LLAMA3 = _llama("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA4 = _llama("<|header_start|>", "<|header_end|>", "<|eot|>")

GEMMA = """
{{- bos_token -}}
{%- set lead = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set lead = messages[0].content | trim + '\\n\\n' -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
  {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' -}}
  {{- (lead if loop.first else '') + (m.content or '') | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
"""Gemma 1 to 3: there is no system role; a system message begins the first question."""

GEMMA4 = """
{{- bos_token -}}
{%- for m in messages -%}
  {{- '<|turn>' + ('model' if m.role == 'assistant' else 'user' if m.role == 'tool' else m.role) + '\\n' -}}
  {{- (m.content or '') | trim + '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}{%- endif -%}
"""

PHI_3 = """
{%- for m in messages -%}
  {{- '<|' + ('user' if m.role == 'tool' else m.role) + '|>\\n' + (m.content or '') + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

COHERE = """
{%- macro head(role) -%}
  {{- '<|START_OF_TURN_TOKEN|>' -}}
  {{- {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}.get(role, '<|SYSTEM_TOKEN|>') -}}
{%- endmacro -%}
{{- bos_token -}}
{%- for m in messages -%}
  {{- head(m.role) + (m.content or '') | trim + '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- head('assistant') -}}{%- endif -%}
"""

EXAONE = """
{%- if messages[0].role != 'system' -%}{{- '[|system|][|endofturn|]\\n' -}}{%- endif -%}
{%- for m in messages -%}
  {%- if m.role in ('user', 'tool') -%}
    {{- '[|user|]' + m.content + '\\n' -}}
  {%- else -%}
    {{- '[|' + m.role + '|]' + (m.content or '') + '[|endofturn|]\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '[|assistant|]' -}}{%- endif -%}
"""

EXAONE4 = (
    LAST_QUESTION
    + """
{%- set lead = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set lead = messages[0].content -%}
  {%- set messages = messages[1:] -%}
  {%- set at.last = at.last - 1 -%}
{%- endif -%}
{%- if tools or lead -%}
  {{- '[|system|]\\n' + lead -}}
  {%- if tools -%}
    {{- '\\n\\n' if lead -}}
    {{- '# Available Tools\\nThese functions can be called:\\n' -}}
    {%- for tool in tools -%}{{- '<tool>' + (tool | tojson) + '</tool>\\n' -}}{%- endfor -%}
    {{- '\\nTo call one, write:\\n<tool_call>{"name": NAME, "arguments": {ARGUMENT: VALUE}}</tool_call>' -}}
  {%- endif -%}
  {{- '[|endofturn|]\\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}"""
    + THOUGHT
    + """
    {{- '[|assistant|]\\n<think>\\n' + (thought if loop.index0 > at.last else '') + '\\n</think>\\n\\n' + body -}}
    {%- for call in m.tool_calls or [] -%}
      {{- '\\n' if body or not loop.first -}}
      {{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' -}}
      {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}
      {{- '}</tool_call>' -}}
    {%- endfor -%}
    {{- '[|endofturn|]\\n' -}}
  {%- elif m.role == 'tool' -%}
    {{- '[|tool|]\\n' if loop.first or loop.previtem.role != 'tool' -}}
    {{- '<tool_result>{"result": ' + (m.content | tojson) + '}</tool_result>' -}}
    {{- '[|endofturn|]\\n' if loop.last or loop.nextitem.role != 'tool' else '\\n' -}}
  {%- else -%}
    {{- '[|' + m.role + '|]\\n' + m.content + '[|endofturn|]\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '[|assistant|]\\n' -}}
  {{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false -}}
{%- endif -%}
"""
)
"""Every answer has a think block, empty where it has no thought or stands before the last question."""

JAMBA = """
{{- bos_token -}}
{%- if messages[0].role != 'system' -%}{{- '<|bom|><|system|> <|eom|>' -}}{%- endif -%}
{%- for m in messages -%}
  {{- '<|bom|><|' + m.role + '|> ' + (m.content or '') + '<|eom|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|bom|><|assistant|> ' -}}{%- endif -%}
"""

DEEPSEEK_V2 = """
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}{{- m.content + '\\n\\n' -}}
  {%- elif m.role == 'assistant' -%}{{- '<｜Assistant｜>' + (m.content or '') + eos_token -}}
  {%- else -%}{{- '<｜User｜>' + m.content -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}{%- endif -%}
"""

DEEPSEEK_V3 = (
    LAST_QUESTION
    + """
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}
{%- if tools -%}
  {{- '\\n\\nThese functions can be called:\\n' -}}
  {%- for tool in tools -%}{{- (tool | tojson) + '\\n' -}}{%- endfor -%}
{%- endif -%}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}
    {{- '<｜User｜>' + m.content -}}
  {%- elif m.role == 'tool' -%}
    {{- '<｜tool▁outputs▁begin｜>' if loop.first or loop.previtem.role != 'tool' -}}
    {{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' -}}
    {{- '<｜tool▁outputs▁end｜>' if loop.last or loop.nextitem.role != 'tool' -}}
  {%- elif m.role == 'assistant' -%}"""
    + THOUGHT
    + """
    {{- '<｜Assistant｜>' if loop.first or loop.previtem.role != 'tool' -}}
    {%- if thought and loop.index0 > at.last -%}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}
    {{- body -}}
    {%- if m.tool_calls -%}
      {{- '<｜tool▁calls▁begin｜>' -}}
      {%- for call in m.tool_calls -%}
        {{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' -}}
        {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}
        {{- '\\n```<｜tool▁call▁end｜>' + ('' if loop.last else '\\n') -}}
      {%- endfor -%}
      {{- '<｜tool▁calls▁end｜>' -}}
    {%- endif -%}
    {{- eos_token -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != 'tool' -%}{{- '<｜Assistant｜>' -}}{%- endif -%}
"""
)
"""V3 and R1. The thoughts behind the last question are kept; the model itself opens the think block."""

ALPACA = """
{{- bos_token or '' -}}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}{{- '### Response:\\n' + (m.content or '') + eos_token -}}
  {%- elif m.role == 'system' -%}{{- m.content -}}
  {%- else -%}{{- '### Instruction:\\n' + m.content -}}
  {%- endif -%}
  {{- '\\n\\n' if not loop.last -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n\\n### Response:\\n' -}}{%- endif -%}
"""

METHARME = """
{{- bos_token or '' -}}
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}{{- '<|model|>' + (m.content or '') | trim + eos_token -}}
  {%- else -%}{{- ('<|system|>' if m.role == 'system' else '<|user|>') + m.content | trim -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|model|>' -}}{%- endif -%}
"""
