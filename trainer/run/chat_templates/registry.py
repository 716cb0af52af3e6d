"""Chat templates by name: what `model.chat_template` may be besides `tokenizer`, a file or a template.

Owns the names, axolotl's among them, and which tokens a format needs in the vocabulary. Needs no torch and no Jinja: the
launcher asks whether a name exists.
"""

from __future__ import annotations

from typing import NamedTuple

from trainer.run.chat_templates import chatml, command_a, headers, mistral


class NamedTemplate(NamedTuple):
    text: str
    tokens: tuple[str, ...]
    """What must be one token each, or the format is not the family's."""


_IM = ("<|im_start|>", "<|im_end|>")
_LLAMA3 = NamedTemplate(headers.LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
_GEMMA = NamedTemplate(headers.GEMMA, ("<start_of_turn>", "<end_of_turn>"))
_GEMMA4 = NamedTemplate(headers.GEMMA4, ("<|turn>", "<turn|>"))
_QWEN_25 = NamedTemplate(chatml.QWEN_25, _IM)
_PHI_3 = NamedTemplate(headers.PHI_3, ("<|user|>", "<|assistant|>", "<|end|>"))
_PHI_4 = NamedTemplate(chatml.PHI_4, (*_IM, "<|im_sep|>"))
_COHERE = NamedTemplate(
    headers.COHERE, ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
)
_RESPONSE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_ACTION|>", "<|END_ACTION|>")
_COMMAND_A_TOOL_USE = NamedTemplate(command_a.COMMAND_A_TOOL_USE, (*_COHERE.tokens, *_RESPONSE))
_TEKKEN = NamedTemplate(mistral.V3_TEKKEN, ("[INST]", "[/INST]"))
_V7 = NamedTemplate(mistral.V7_TEKKEN, ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"))
_DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>")

TEMPLATES: dict[str, NamedTemplate] = {
    "alpaca": NamedTemplate(headers.ALPACA, ()),
    "aya": _COHERE,
    "chatml": NamedTemplate(chatml.CHATML, _IM),
    "cohere": _COHERE,
    "command_a": NamedTemplate(command_a.COMMAND_A, (*_COHERE.tokens, *_RESPONSE)),
    "command_a_rag": _COMMAND_A_TOOL_USE,
    "command_a_tool_use": _COMMAND_A_TOOL_USE,
    "deepseek_v2": NamedTemplate(headers.DEEPSEEK_V2, _DEEPSEEK),
    "deepseek_v3": NamedTemplate(headers.DEEPSEEK_V3, _DEEPSEEK),
    "exaone": NamedTemplate(headers.EXAONE, ("[|endofturn|]",)),
    "exaone4": NamedTemplate(headers.EXAONE4, ("[|endofturn|]",)),
    "falcon_h1": NamedTemplate(chatml.FALCON_H1, _IM),
    "gemma": _GEMMA,
    "gemma3": _GEMMA,
    "gemma3n": _GEMMA,
    "gemma4": _GEMMA4,
    "gemma4_unified": _GEMMA4,
    "jamba": NamedTemplate(headers.JAMBA, ("<|bom|>", "<|eom|>")),
    "llama3": _LLAMA3,
    "llama3_2_vision": _LLAMA3,
    "llama4": NamedTemplate(headers.LLAMA4, ("<|header_start|>", "<|header_end|>", "<|eot|>")),
    "metharme": NamedTemplate(headers.METHARME, ()),
    "mistral": _V7,
    "mistral_v1": NamedTemplate(mistral.V1, ()),
    "mistral_v2v3": NamedTemplate(mistral.V2V3, ()),
    "mistral_v3_tekken": _TEKKEN,
    "mistral_v7_tekken": _V7,
    "nemotron_h": NamedTemplate(chatml.CHATML, _IM),
    "phi4": _PHI_4,
    "phi_3": _PHI_3,
    "phi_35": _PHI_3,
    "phi_4": _PHI_4,
    "pixtral": _TEKKEN,
    "qwen2_vl": _QWEN_25,
    "qwen3": NamedTemplate(chatml.QWEN3, _IM),
    "qwen3_5": NamedTemplate(chatml.QWEN3_5, _IM),
    "qwen_25": _QWEN_25,
}
"""By name; several names may mean the same format."""
