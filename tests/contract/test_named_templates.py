"""Our own templates write their family's format: a wrong space here is a model that no tool of its family can talk to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.data_job import write_tokenizer
from tests.support.families import CONVERSATIONS, WEATHER, assistant, user
from trainer.data.render import Renderer
from trainer.data.tokenizer import load_tokenizer
from trainer.run.chat_templates.registry import TEMPLATES
from trainer.run.exits import BadInput
from trainer.run.formats.turns import MESSAGES
from trainer.run.settings.model import ModelSpec, SpecialTokens

ENDS = {
    "llama3": "<|eot_id|>", "llama3_2_vision": "<|eot_id|>", "llama4": "<|eot|>", "gemma": "<end_of_turn>", "gemma3": "<end_of_turn>",
    "gemma3n": "<end_of_turn>", "gemma4": "<turn|>", "gemma4_unified": "<turn|>", "phi_3": "<|end|>", "phi_35": "<|end|>",
    "exaone": "[|endofturn|]", "exaone4": "[|endofturn|]", "jamba": "<|eom|>", "cohere": "<|END_OF_TURN_TOKEN|>", "aya": "<|END_OF_TURN_TOKEN|>",
    "command_a": "<|END_OF_TURN_TOKEN|>", "command_a_rag": "<|END_OF_TURN_TOKEN|>", "command_a_tool_use": "<|END_OF_TURN_TOKEN|>",
    "chatml": "<|im_end|>", "nemotron_h": "<|im_end|>", "falcon_h1": "<|im_end|>", "phi4": "<|im_end|>", "phi_4": "<|im_end|>", "qwen2_vl": "<|im_end|>",
    "qwen3": "<|im_end|>", "qwen3_5": "<|im_end|>", "qwen_25": "<|im_end|>",
}  # fmt: skip
"""What ends an answer; of the others it is the tokenizer's end token."""

EXCHANGE = [
    {"role": "system", "content": "Be kind."},
    user("Hi"),
    assistant("Hello."),
    user("Bye"),
    assistant("So long."),
]
WRITTEN = {
    "alpaca": "<s>Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye\n\n### Response:\nSo long.</s>",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSo long.<|im_end|>\n",
    "cohere": "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be kind.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>So long.<|END_OF_TURN_TOKEN|>",
    "command_a": "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be kind.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>Hello.<|END_RESPONSE|><|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>So long.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "deepseek_v2": "<s>Be kind.\n\n<｜User｜>Hi<｜Assistant｜>Hello.</s><｜User｜>Bye<｜Assistant｜>So long.</s>",
    "deepseek_v3": "<s>Be kind.<｜User｜>Hi<｜Assistant｜>Hello.</s><｜User｜>Bye<｜Assistant｜>So long.</s>",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello.[|endofturn|]\n[|user|]Bye\n[|assistant|]So long.[|endofturn|]\n",
    "exaone4": "[|system|]\nBe kind.[|endofturn|]\n[|user|]\nHi[|endofturn|]\n[|assistant|]\n<think>\n\n</think>\n\nHello.[|endofturn|]\n[|user|]\nBye[|endofturn|]\n[|assistant|]\n<think>\n\n</think>\n\nSo long.[|endofturn|]\n",
    "falcon_h1": "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSo long.<|im_end|>\n",
    "gemma3": "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nSo long.<end_of_turn>\n",
    "gemma4": "<s><|turn>system\nBe kind.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\nHello.<turn|>\n<|turn>user\nBye<turn|>\n<|turn>model\nSo long.<turn|>\n",
    "jamba": "<s><|bom|><|system|> Be kind.<|eom|><|bom|><|user|> Hi<|eom|><|bom|><|assistant|> Hello.<|eom|><|bom|><|user|> Bye<|eom|><|bom|><|assistant|> So long.<|eom|>",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nSo long.<|eot_id|>",
    "llama4": "<s><|header_start|>system<|header_end|>\n\nBe kind.<|eot|><|header_start|>user<|header_end|>\n\nHi<|eot|><|header_start|>assistant<|header_end|>\n\nHello.<|eot|><|header_start|>user<|header_end|>\n\nBye<|eot|><|header_start|>assistant<|header_end|>\n\nSo long.<|eot|>",
    "metharme": "<s><|system|>Be kind.<|user|>Hi<|model|>Hello.</s><|user|>Bye<|model|>So long.</s>",
    "mistral_v1": "<s> [INST] Be kind.\n\nHi [/INST] Hello.</s> [INST] Bye [/INST] So long.</s>",
    "mistral_v2v3": "<s>[INST] Hi[/INST] Hello.</s>[INST] Be kind.\n\nBye[/INST] So long.</s>",
    "mistral_v3_tekken": "<s>[INST]Hi[/INST]Hello.</s>[INST]Be kind.\n\nBye[/INST]So long.</s>",
    "mistral": "<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT][INST]Hi[/INST]Hello.</s>[INST]Bye[/INST]So long.</s>",
    "phi_3": "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\nSo long.<|end|>\n",
    "phi_4": "<|im_start|>system<|im_sep|>Be kind.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Hello.<|im_end|><|im_start|>user<|im_sep|>Bye<|im_end|><|im_start|>assistant<|im_sep|>So long.<|im_end|>",
    "qwen3": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nSo long.<|im_end|>\n",
    "qwen_25": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSo long.<|im_end|>\n",
}  # fmt: skip
WRITTEN["qwen3_5"] = WRITTEN["qwen3"]
WRITTEN["command_a_tool_use"] = WRITTEN["command_a"]

CALLS = {
    "llama3": '{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eot_id|>',
    "qwen_25": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
    "qwen3": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
    "qwen3_5": "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call><|im_end|>",
    "exaone4": '<think>\n\n</think>\n\n<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>[|endofturn|]',
    "command_a": '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Oslo"}}\n]<|END_ACTION|><|END_OF_TURN_TOKEN|>',
    "mistral_v2v3": '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "aaaaaaaa1"}]</s>',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "aaaaaaaa1"}]</s>',
    "deepseek_v3": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜></s>',
}  # fmt: skip
"""A call as the family writes it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("named") / "tokenizer", "byte-level", None)


def named(folder: Path, name: str) -> Any:
    return load_tokenizer(
        ModelSpec(
            base=str(folder),
            chat_template=name,
            special_tokens=SpecialTokens(eos_token=ENDS.get(name, "</s>")),
            added_tokens=TEMPLATES[name].tokens,
        )
    )


def test_every_format_is_written_out_here() -> None:
    texts = {TEMPLATES[name].text for name in WRITTEN}
    assert {template.text for template in TEMPLATES.values()} == texts


@pytest.mark.parametrize("name", WRITTEN)
def test_a_named_template_writes_its_familys_format(folder: Path, name: str) -> None:
    text = named(folder, name).apply_chat_template(EXCHANGE, tokenize=False)
    assert text == WRITTEN[name]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_what_is_trained_follows_the_generation_prompt(folder: Path, name: str, conversation: str) -> None:
    tokenizer = named(folder, name)
    messages, tools = CONVERSATIONS[conversation], [WEATHER] if conversation == "tools" else None
    renderer = Renderer(tokenizer, False, False)
    rendered = renderer.render(MESSAGES.parse({"messages": messages, "tools": tools}))
    last = rendered.spans[-1]
    assert renderer.told.endless == 0
    assert renderer.told.answers == sum(message["role"] == "assistant" for message in messages)
    assert rendered.text[last.start : last.end].endswith(ENDS.get(name, "</s>"))
    if tools and renderer.moves_tools(MESSAGES.parse({"messages": messages, "tools": tools})):
        return
    assert rendered.text == tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True)
    assert rendered.text[: last.start] == prompt
    assert set(renderer.told.gone) <= {"thoughts", "thoughts of earlier answers"}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_written_as_the_family_writes_it(folder: Path, name: str) -> None:
    rendered = Renderer(named(folder, name), False, False).render(
        MESSAGES.parse({"messages": CONVERSATIONS["tools"], "tools": [WEATHER]})
    )
    first = rendered.spans[0]
    assert rendered.text[first.start : first.end] == CALLS[name]
    asked = rendered.text.index("Thanks") if name == "mistral_v2v3" else first.start
    assert "The weather of a city" in rendered.text[:asked], "the functions stand before the question that needs them"


def test_what_came_of_a_call_is_found_under_its_number(folder: Path) -> None:
    text = named(folder, "command_a_rag").apply_chat_template(CONVERSATIONS["tools"], tools=[WEATHER], tokenize=False)
    results = [part.partition("<|END_TOOL_RESULT|>")[0] for part in text.split("<|START_TOOL_RESULT|>")[1:]]
    expected = [
        {"tool_call_id": str(n), "results": {"0": said}, "is_error": None} for n, said in enumerate(("three", "nine"))
    ]
    assert [json.loads(result) for result in results] == [[one] for one in expected]
    assert 'tool_result>{"result": "three"}</tool_result>[|endofturn|]' in named(folder, "exaone4").apply_chat_template(
        CONVERSATIONS["tools"], tokenize=False
    )


def test_documents_stand_behind_the_first_question(folder: Path) -> None:
    text = named(folder, "command_a_rag").apply_chat_template(
        EXCHANGE[:2], documents=[{"text": "a"}, {"text": "b"}], tokenize=False, add_generation_prompt=True
    )
    before, _, after = text.partition("<|START_TOOL_RESULT|>")
    assert "Hi" in before
    [found] = json.loads(after.partition("<|END_TOOL_RESULT|>")[0])
    assert found["results"] == {"0": {"text": "a"}, "1": {"text": "b"}}
    assert text.endswith("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5", "deepseek_v3", "exaone4"])
@pytest.mark.parametrize("conversation", ["thoughts", "inline"])
def test_a_thinking_family_trains_the_last_thought_and_each_when_unrolled(
    folder: Path, name: str, conversation: str
) -> None:
    tokenizer = named(folder, name)
    parsed = MESSAGES.parse({"messages": CONVERSATIONS[conversation]})
    once, unrolled = Renderer(tokenizer, False, False), Renderer(tokenizer, False, False, unroll=True)
    assert "three and three" in once.render(parsed).text
    assert set(once.told.gone) == {"thoughts of earlier answers"}
    assert len(unrolled.render_all(parsed)) == 2
    assert unrolled.told.gone == {}


def test_a_template_whose_markers_are_no_tokens_is_refused_with_what_to_add(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"gemma3 writes <start_of_turn> <end_of_turn>, no token .* model.added_tokens"):
        load_tokenizer(ModelSpec(base=str(folder), chat_template="gemma3"))
