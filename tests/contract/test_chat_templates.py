"""The contract of chat templates: of what `apply_chat_template` writes, the model is trained on what it must write itself.

The disasters: a tool loop that is refused whole, a header that the model learns to write, thoughts that are paid for and
never trained, a model that never stops.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.data_job import write_tokenizer
from tests.support.families import CONVERSATIONS, FAMILIES, GEMMA, R1, WEATHER, Family, assistant, call, user
from trainer.data.encode import Encoder
from trainer.data.render import Renderer
from trainer.data.tokenizer import load_tokenizer
from trainer.run.formats.conversation import BadRow, Conversation, check
from trainer.run.formats.turns import MESSAGES
from trainer.run.settings.model import ModelSpec, SpecialTokens

CASES = [(family, name) for family, kind in FAMILIES.items() for name in CONVERSATIONS if name in kind.trained]
SAME_TOOLS = [(family, name) for family, name in CASES if name != "tools" or not FAMILIES[family].moves_tools]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of any family, made once each."""
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in made:
            family = FAMILIES[name]
            folder = write_tokenizer(tmp_path_factory.mktemp("families") / name)
            start = next((token for token in ("<|begin_of_text|>", "<bos>", "<s>") if token in family.special), None)
            spec = ModelSpec(
                base=str(folder),
                chat_template=family.template,
                special_tokens=SpecialTokens(bos_token=start, eos_token=family.end),
                added_tokens=family.special,
            )
            made[name] = load_tokenizer(spec)
        return made[name]

    return make


def conversation_of(name: str) -> Conversation:
    row: dict[str, Any] = {"messages": CONVERSATIONS[name]}
    if name == "tools":
        row["tools"] = [WEATHER]
    conversation = MESSAGES.parse(row)
    check(conversation)
    return conversation


def renderer_of(tokenizer: Any, family: Family, **options: Any) -> Renderer:
    stops = [tokenizer.convert_tokens_to_ids(token) for token in family.end_tokens or (family.end,)]
    return Renderer(tokenizer, False, False, stops=stops, **options)


def passages(tokenizer: Any, renderer: Renderer, conversation: Conversation) -> list[list[str]]:
    """The trained passages of each sequence, decoded from tokens."""
    rendered = renderer.render_all(conversation)
    encoded = Encoder(tokenizer).encode(rendered, [False] * len(rendered))
    out, ends = [], np.cumsum(encoded.lengths)
    for end, length in zip(ends, encoded.lengths, strict=True):
        tokens, on = encoded.tokens[end - length : end], encoded.weights[end - length : end] > 0
        cuts = np.flatnonzero(np.diff(on)) + 1
        parts = [part for part in np.split(np.arange(length), cuts) if on[part[0]]]
        out.append([tokenizer.decode(tokens[part].tolist(), skip_special_tokens=False) for part in parts])
    return out


@pytest.mark.parametrize("family, name", CASES)
def test_what_is_trained_is_what_the_model_must_write(tokenizer: Any, family: str, name: str) -> None:
    kind = FAMILIES[family]
    own = tokenizer(family)
    renderer = renderer_of(own, kind)
    conversation = conversation_of(name)
    assert passages(own, renderer, conversation) == [kind.trained[name]]
    assert set(renderer.told.gone) == (kind.gone or {}).get(name, set())


@pytest.mark.parametrize("family, name", SAME_TOOLS)
def test_the_text_is_that_of_apply_chat_template(tokenizer: Any, family: str, name: str) -> None:
    kind = FAMILIES[family]
    own = tokenizer(family)
    tools = [WEATHER] if name == "tools" else None
    expected = own.apply_chat_template(CONVERSATIONS[name], tools=tools, tokenize=False)
    assert renderer_of(own, kind).render(conversation_of(name)).text == expected


def test_a_role_that_the_template_refuses_is_a_bad_row_in_its_own_words(tokenizer: Any) -> None:
    with pytest.raises(BadRow, match="System role not supported"):
        renderer_of(tokenizer("gemma"), GEMMA).render(conversation_of("system"))


@pytest.mark.parametrize("family", ["qwen3", "gpt-oss"])
def test_thoughts_that_vanish_later_are_trained_by_unrolling_and_never_twice(tokenizer: Any, family: str) -> None:
    kind, own = FAMILIES[family], tokenizer(family)
    renderer = renderer_of(own, kind, unroll=True)
    first, second = passages(own, renderer, conversation_of("thoughts"))
    last = kind.trained["thoughts"][-1]
    assert first == [last.replace("three and three", "two and two").replace("6", "4")]
    assert second == [last], "the answer without its thoughts is context alone"
    assert renderer.told.gone == {}
    assert renderer.told.trained == renderer.told.said


def test_nothing_is_unrolled_where_it_would_not_help(tokenizer: Any) -> None:
    renderer = renderer_of(tokenizer("deepseek-r1"), R1, unroll=True)
    assert len(renderer.render_all(conversation_of("inline"))) == 1
    assert len(renderer.render_all(conversation_of("plain"))) == 1


@pytest.mark.parametrize(
    "reasoning, expected",
    [
        (True, ["<think>\ntwo and two\n</think>\n\n4<|im_end|>", "<think>\nthree and three\n</think>\n\n6<|im_end|>"]),
        ("last", ["4<|im_end|>", "<think>\nthree and three\n</think>\n\n6<|im_end|>"]),
        (False, ["4<|im_end|>", "6<|im_end|>"]),
    ],
)
@pytest.mark.parametrize("family", ["chatml", "phi4"])
def test_thoughts_are_trained_as_the_job_says(tokenizer: Any, family: str, reasoning: Any, expected: list[str]) -> None:
    own = tokenizer(family)
    renderer = renderer_of(own, FAMILIES[family], reasoning=reasoning)
    assert passages(own, renderer, conversation_of("inline")) == [expected]
    untrained = renderer.told.said - renderer.told.trained
    thoughts = ("two and two", "three and three")
    assert untrained == {True: 0, "last": len(thoughts[0]), False: len("".join(thoughts))}[reasoning]


def test_an_empty_think_block_that_the_prompt_supplies_is_not_trained(tokenizer: Any) -> None:
    own = tokenizer("qwen3")
    supplied = FAMILIES["qwen3"]._replace(
        template=FAMILIES["qwen3"].template.replace("enable_thinking is defined and not enable_thinking", "true")
    )
    before, own.chat_template = own.chat_template, supplied.template
    try:
        assert passages(own, renderer_of(own, supplied), conversation_of("plain")) == [
            ["Hello.<|im_end|>", "Fine.\n<|im_end|>"]
        ]
        thought = passages(own, renderer_of(own, supplied), conversation_of("thoughts"))[0]
        assert thought[1] == "three and three\n</think>\n\n6<|im_end|>"
    finally:
        own.chat_template = before


def test_calls_without_ids_get_some_where_the_template_insists(tokenizer: Any) -> None:
    messages = copy.deepcopy(CONVERSATIONS["tools"])
    for message in messages:
        message.pop("tool_call_id", None)
        for one in message.get("tool_calls", ()):
            one.pop("id", None)
    own = tokenizer("mistral-v0.3")
    conversation = MESSAGES.parse({"messages": messages, "tools": [WEATHER]})
    text = renderer_of(own, FAMILIES["mistral-v0.3"]).render(conversation).text
    assert text.count("call00001") == text.count("call00002") == 2, "a call and its result have the same"


words = st.lists(
    st.sampled_from(["a", "hello ", " ", "\n\n", "<think>", "</think>", "<|im_end|>", "</s>", "<|im_start|>assistant\n", "[/INST]", '{"a": 1}', "é🐬", "\ue000", "'", '"', "\\", "null"]),
    min_size=1,
    max_size=5,
).map("".join)  # fmt: skip
said = words.filter(lambda text: any(letter.isalnum() for letter in re.sub("</?think>", "", text)))


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    has_tools, messages = draw(st.booleans()), []
    for number in range(draw(st.integers(1, 3))):
        messages.append(user(draw(said)))
        if has_tools and draw(st.booleans()):
            identity = f"aaaaaaaa{number}"
            messages.append(assistant("", tool_calls=[call(draw(said), id=identity)]))
            messages.append({"role": "tool", "content": draw(said), "tool_call_id": identity})
        messages.append(assistant(draw(said), **({"reasoning_content": draw(said)} if draw(st.booleans()) else {})))
    return messages, [WEATHER] if has_tools else None


def says_something(message: dict[str, Any]) -> bool:
    """Whether more than a thought, which a template may leave out once others follow: then nothing of it is there to train."""
    return bool(str(message.get("content") or "").rpartition("</think>")[2].strip() or message.get("tool_calls"))


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_said_each_answer_begins_where_its_prompt_ends(tokenizer: Any, family: str) -> None:
    kind, own = FAMILIES[family], tokenizer(family)
    learned, looked = renderer_of(own, kind), renderer_of(own, kind)
    looked._plain._shapes = looked._with_tools._shapes = Never()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(rows())
    def check_all(row: tuple[list[dict[str, Any]], list[dict[str, Any]] | None]) -> None:
        messages, tools = row
        conversation = MESSAGES.parse({"messages": messages, "tools": tools if "tools" in kind.template else None})
        try:
            rendered = learned.render(conversation)
        except BadRow:
            assert kind is GEMMA, "of the others every conversation is taken"
            return
        assert looked.render(conversation) == rendered
        if kind is R1 or (any("tool_calls" in message for message in messages) and "tool_calls" not in kind.template):
            return
        tools = conversation.tools
        assert rendered.text == own.apply_chat_template(messages, tools=tools, tokenize=False)
        starts = {span.start for span in rendered.spans}
        for number, message in enumerate(messages):
            if message["role"] == "assistant" and says_something(message):
                prompt = own.apply_chat_template(
                    messages[:number], tools=tools, tokenize=False, add_generation_prompt=True
                )
                assert len(prompt) in starts or not rendered.text.startswith(prompt)

    check_all()


class Never(dict[Any, Any]):
    """Shapes of which none is known."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: object) -> None:
        return None


def test_arguments_are_given_as_the_template_takes_them(tokenizer: Any) -> None:
    written = '{"city":"Oslo"}'
    messages = copy.deepcopy(CONVERSATIONS["tools"])
    messages[1]["tool_calls"][0]["function"]["arguments"] = written
    messages[3]["tool_calls"][0]["function"]["arguments"] = '{"city": "Bergen"}'
    conversation = MESSAGES.parse({"messages": messages})
    own = tokenizer("deepseek-r1")
    text = renderer_of(own, R1).render(conversation).text
    assert text == own.apply_chat_template(messages, tokenize=False)
    assert written in text, "as the data has it, not written anew"
    assert (
        '"parameters": {"city": "Oslo"}'
        in renderer_of(tokenizer("llama3.1"), FAMILIES["llama3.1"]).render(conversation).text
    )
