"""Every dataset shape of the reference mix loads, with its roles, weights and function calls: a row lost in silence is a
model that was trained on something else."""

from __future__ import annotations

import contextlib
import json
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.data_job import FIXTURES, chat, data_job, write_rows
from trainer.data.inputs import files_of
from trainer.data.pipeline import parsed
from trainer.data.plan import DataPlan
from trainer.data.prepare import prepare
from trainer.data.readers import blocks
from trainer.run.chat_templates.chatml import CHATML
from trainer.run.exits import BadInput
from trainer.run.formats.base import DatasetFormat
from trainer.run.formats.conversation import EMPTY_SYSTEM, OPENING_ANSWER, BadRow, Conversation, check
from trainer.run.formats.registry import FORMATS, choose
from trainer.run.settings.data import SourceSpec

S, U, A, T = "system", "user", "assistant", "tool"
SHAPES = {
    "dolphin-2.9.jsonl": ("sharegpt", 2, [(S, "You are Dolphin, a helpful AI assistant."), (U, "Name a marine mammal."), (A, "The dolphin. 🐬")]),
    "codefeedback-filtered-instruction.jsonl": ("query-answer", 2, [(U, "Write a function that doubles a number."), (A, "```python\ndef double(x):\n    return 2 * x\n```")]),
    "dolphin-coder.jsonl": ("system-question-response", 2, [(S, "You write C."), (U, "Swap two integers."), (A, "Use a third one:\n\n\tint t = a; a = b; b = t;")]),
    "dolphin-coder-sharegpt.jsonl": ("sharegpt", 1, [(S, "You write Rust."), (U, "An empty vector?"), (A, "`let v: Vec<u8> = Vec::new();`")]),
    "samantha-data.jsonl": ("sharegpt", 2, [(U, "How was your day?"), (A, "I read about tides. And yours?"), (U, "Long."), (A, "Then rest a little.")]),
    "orca-math-word-problems-200k.jsonl": ("question-answer", 2, [(U, "Ann has 3 boxes of 4 pens. How many pens?"), (A, "3 × 4 = 12 pens.")]),
    "finetome-100k.jsonl": ("sharegpt", 2, [(U, "Why is the sea salty?"), (A, "Rivers carry minerals into it.")]),
    "agent-data.jsonl": ("sharegpt", 2, [(S, "You may call get_tide(place)."), (U, "High tide in Brest?"), (A, ""), (T, '{"high": "17:40"}'), (A, "High tide is at 17:40.")]),
    "math-gpt-4o-200k.jsonl": ("prompt-response", 2, [(U, "Solve x + 1 = 3."), (A, "x = 2")]),
    "systemchat-2.0.jsonl": ("messages", 2, [(S, "Speak like a pirate."), (U, "Hello"), (A, "Ahoy!")]),
    "alpaca.json": ("alpaca", 3, [(U, "Translate to German.\n\nsea"), (A, "Meer")]),
    "content-parts.jsonl": ("messages", 2, [(U, "hi"), (A, "Hello!"), (U, "again"), (A, "Hello, again.")]),
    "tool-calls.json": ("sharegpt", 2, [(U, "Weather in Oslo?"), (A, ""), (T, '{"celsius": -3}'), (A, "It is -3 °C in Oslo.")]),
    "messages-tool-calls.jsonl": ("messages", 1, [(U, "Time?"), (A, ""), (T, "12:00"), (A, "Noon.")]),
}  # fmt: skip
REAL = {
    "dummy_conversation.json": 500,
    "alpaca_en_demo.json": 999,
    "glaive_toolcall_en_demo.json": 300,
    "v1_sft_demo.jsonl": 500,
}


def parse(path: Path, **source: object) -> tuple[str, list[Conversation]]:
    spec = SourceSpec.model_validate({"path": str(path)} | source)
    rows = [row for file in files_of(spec, "it") for block in blocks(file) for row in block.read()]
    assert not any(isinstance(row, BadRow) for row in rows)
    shape = choose(spec, list(rows[0]), "it")
    conversations = [shape.parse(row) for row in rows]
    for conversation in conversations:
        check(conversation)
    return shape.name, conversations


@pytest.mark.parametrize("file", SHAPES)
def test_every_shape_of_the_reference_mix_loads(file: str) -> None:
    name, num_rows, first = SHAPES[file]
    found, conversations = parse(FIXTURES / file)
    assert (found, len(conversations)) == (name, num_rows)
    assert [(turn.role, turn.content) for turn in conversations[0].turns] == first


def test_no_fixture_is_without_a_test() -> None:
    tested = {*SHAPES, "segments.jsonl", "own-fields.jsonl", "own-template.jinja", "text.jsonl"}
    assert {path.name for path in FIXTURES.iterdir()} == tested


def test_function_calls_reach_the_template_as_calls_with_their_tools() -> None:
    _, conversations = parse(FIXTURES / "tool-calls.json")
    weather = conversations[0]
    assert weather.turns[1].extra == {
        "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]
    }
    assert weather.tools is not None
    assert weather.tools[0]["name"] == "get_weather"
    assert conversations[1].tools is None, "an empty list of tools is none"
    _, agent = parse(FIXTURES / "agent-data.jsonl")
    assert [turn.role for turn in agent[1].turns] == [U, A, T, A], "a call joins the turn that announces it"


def test_weights_of_turns_are_kept() -> None:
    _, conversations = parse(FIXTURES / "content-parts.jsonl")
    assert [turn.weight for turn in conversations[0].turns] == [0.0, 1.0, 0.0, 0.25]
    assert [turn.weight for turn in conversations[1].turns] == [None, 0.0, None, 1.0]


def test_alpaca_history_and_system_come_first() -> None:
    _, conversations = parse(FIXTURES / "alpaca.json")
    assert [(turn.role, turn.content) for turn in conversations[2].turns] == [
        (S, "One word."), (U, "Name a colour."), (A, "Red"), (U, "And one more?"), (A, "Green"),
    ]  # fmt: skip


def test_chosen_field_names() -> None:
    fields = {"prompt": "ask", "response": "reply", "system": "preamble"}
    name, conversations = parse(FIXTURES / "own-fields.jsonl", fields=fields)
    assert name == "fields"
    assert [turn.content for turn in conversations[0].turns] == ["Be brief.", "Capital of Peru?", "Lima"]
    assert [turn.role for turn in conversations[1].turns] == [U, A], "an empty system message is none"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"fields": {"prompt": "ask"}}, "needs prompt and response"),
        ({"fields": {"prompt": "ask", "response": "nope"}}, "columns are ask, preamble, reply"),
        ({"fields": {"question": "ask"}}, "not question"),
        ({"format": "sharegtp"}, "no format 'sharegtp'"),
        ({"format": "sharegpt", "fields": {"prompt": "ask", "response": "reply"}}, "contradicts"),
        ({}, "no format has the columns ask, preamble, reply"),
    ],
)
def test_a_wrong_shape_is_named_before_anything_is_read(source: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse(FIXTURES / "own-fields.jsonl", **source)


def test_plain_text_is_trained_whole_and_closed_by_the_end_token(tmp_path: Path) -> None:
    data = prepare(data_job(tmp_path, FIXTURES / "text.jsonl"))
    assert len(data.train) == 2
    ids, weights = data.token_ids(0), data.token_weights(0)
    assert weights[0] == 0
    assert (weights[1:] == 1).all()
    assert ids[-1] == 4, "the end token closes a document"


def test_segments_are_trained_where_they_say_so_and_nothing_is_added(tmp_path: Path) -> None:
    from trainer.data.tokenizer import load_tokenizer

    job = data_job(tmp_path, FIXTURES / "segments.jsonl")
    data, tokenizer = prepare(job), load_tokenizer(job.spec.model)
    assert len(data.train) == 2
    assert tokenizer.decode(data.token_ids(0)) == "<s>Tide table\nBrest: 17:40</s>"
    assert tokenizer.decode(data.token_ids(1)) == "Oslo? Fjord 🐬."
    trained = [tokenizer.decode(data.token_ids(row)[data.token_weights(row) > 0]) for row in (0, 1)]
    assert "Brest" not in trained[0]
    assert trained[0].startswith("Tide table"), "the first token is nobody's target"
    assert trained[0].endswith("17:40</s>")
    assert trained[1].strip() == "Fjord 🐬."


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        ([{"text": "a", "label": 1}], "label is 1"),
        ([{"label": True}], "segment 1 has no text"),
        ([{"text": "a", "label": False}], "no segment is trained"),
        ([{"text": " ", "label": True}], "empty"),
        ("a", "not a list"),
    ],
)
def test_segments_that_cannot_be_trained_are_counted_not_guessed(segments: object, says: str) -> None:
    with pytest.raises(BadRow, match=says):
        check(choose(SourceSpec(path="x"), ["segments"], "it").parse({"segments": segments}))


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    job = data_job(
        tmp_path, FIXTURES / "systemchat-2.0.jsonl", model={"chat_template": str(FIXTURES / "own-template.jinja")}
    )
    data = prepare(job)
    from trainer.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(job.spec.model)
    assert tokenizer.decode(data.token_ids(0)) == "(Speak like a pirate.)\nQ: Hello\nA: Ahoy!<|im_end|>\n"
    trained = data.token_ids(0)[data.token_weights(0) > 0]
    assert tokenizer.decode(trained).strip() == "Ahoy!<|im_end|>"


def test_names_of_formats_are_unique() -> None:
    names = [entry.name for entry in FORMATS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("file", REAL)
def test_real_samples_load_and_train(file: str, tmp_path: Path) -> None:
    folder = os.environ.get("DOLPHIN_SHARED_DATA")
    if folder is None:
        pytest.skip("DOLPHIN_SHARED_DATA names no folder of sample data")
    job = data_job(tmp_path, Path(folder) / file, sequence_length=32768, max_bad_fraction=0.0)
    data = prepare(job)
    assert len(data.train) == REAL[file]
    assert 0 < DataPlan.open(job).trained_tokens_per_epoch < DataPlan.open(job).tokens_per_epoch


# -- rows as people write them ------------------------------------------------------------------------------------------


def conversation(row: dict[str, Any], **source: Any) -> Conversation:
    spec = SourceSpec.model_validate({"path": "x"} | source)
    return parsed(row, choose(spec, list(row), "it"))


def said(row: dict[str, Any], **source: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation(row, **source).turns]


QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PLAIN = [(U, "q"), (A, "a")]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": json.dumps([QUESTION, ANSWER])},
        {"messages": str([QUESTION, ANSWER])},
        {"conversations": json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}])},
        {"messages": [{"role": " User ", "content": "q"}, {"role": "ASSISTANT", "content": "a"}]},
        {"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}]},
        {"messages": [{"role": "system", "content": " \n"}, QUESTION, ANSWER]},
        {"messages": [QUESTION, ANSWER], "tools": ""},
        {"messages": [QUESTION, ANSWER], "system": None},
        {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": [QUESTION], "completion": "a"},
        {"prompt": "q", "completion": [ANSWER]},
        {"prompt": "q", "response": [ANSWER]},
        {"messages": [QUESTION, {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "value": "q"}]}, ANSWER]},
        {"instruction": "q", "input": float("nan"), "output": "a", "history": "[]"},
    ],
)
def test_one_exchange_in_every_way_to_write_it(row: dict[str, Any]) -> None:
    assert said(row) == PLAIN


@pytest.mark.parametrize(
    ("answer", "text"), [(42, "42"), (2.5, "2.5"), (-1, "-1"), (0, "0"), (Decimal("1.50"), "1.50")]
)
def test_a_number_is_an_answer(answer: object, text: str) -> None:
    assert said({"question": "how many?", "answer": answer}) == [(U, "how many?"), (A, text)]
    assert said({"messages": [QUESTION, {"role": "assistant", "content": answer}]}) == [(U, "q"), (A, text)]


@pytest.mark.parametrize("answer", [True, {"a": 1}, {}, float("nan"), None])
def test_what_is_neither_text_nor_number_is_a_bad_row(answer: object) -> None:
    with pytest.raises(BadRow):
        said({"question": "q", "answer": answer})


def test_what_the_assistant_says_in_a_prompt_is_not_trained() -> None:
    """As in TRL, where the loss is that of the completion."""
    turns = conversation({"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]}).turns
    assert [turn.weight for turn in turns] == [None, 0.0, None, None]
    kept = conversation({"prompt": [QUESTION, {**ANSWER, "weight": 1}, QUESTION], "completion": [ANSWER]}).turns
    assert [turn.weight for turn in kept] == [None, 1.0, None, None]


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "reasoning", "value": "why"}, {"type": "text", "value": "a"}, {"type": "tool_call", "value": json.dumps({"name": "f", "arguments": {"x": 1}})}],
        [{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "a"}, {"type": "tool_use", "name": "f", "input": {"x": 1}}],
        [{"type": "thoughts", "text": "why"}, {"type": "tool_calls", "calls": [{"name": "f", "arguments": '{"x": 1}'}]}, "a"],
        [{"type": "reasoning", "text": "why"}, {"type": "text", "text": "a"}, {"type": "tool_calls", "value": [CALL]}],
    ],
)  # fmt: skip
def test_parts_of_thoughts_and_calls_become_thoughts_and_calls(parts: list[Any]) -> None:
    turn = conversation({"messages": [QUESTION, {"role": "assistant", "content": parts}]}).turns[1]
    assert (turn.content, turn.extra) == ("a", {"reasoning_content": "why", "tool_calls": [CALL]})


def test_a_part_that_is_an_image_is_a_bad_row_and_not_left_out() -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(BadRow, match=r"not text \(image_url\)"):
        said({"messages": [{"role": "user", "content": parts}, ANSWER]})


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_a_turn_whose_words_are_all_thoughts_is_not_empty(key: str) -> None:
    assert said({"messages": [QUESTION, {"role": "assistant", "content": "", key: "hm"}]}) == [(U, "q"), (A, "")]
    with pytest.raises(BadRow, match="is empty"):
        said({"messages": [QUESTION, {"role": "assistant", "content": "", key: " "}]})


def test_an_empty_system_message_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "data.jsonl", [chat(f"q{i}", "a", system="" if i < 3 else "s") for i in range(5)])
    data = prepare(data_job(tmp_path, path))
    assert len(data.train) == 5
    (source,) = json.loads((tmp_path / "run" / "data_report.json").read_text())["sources"]
    assert source["changed"] == {EMPTY_SYSTEM: 3}


@pytest.mark.parametrize(
    ("template", "changed"),
    [("chatml", {}), ("{% if messages[0].role != 'user' %}{{ raise_exception('the user first') }}{% endif %}" + CHATML, {OPENING_ANSWER: 2})],
)  # fmt: skip
def test_an_opening_answer_is_kept_where_the_template_takes_it(
    tmp_path: Path, template: str, changed: dict[str, int]
) -> None:
    rows = [chat(f"q{i}", "a") for i in range(4)]
    for row in rows[:2]:
        row["conversations"].insert(0, {"from": "gpt", "value": "...the end of something."})
    path = write_rows(tmp_path / "data.jsonl", rows)
    data = prepare(data_job(tmp_path, path, model={"chat_template": template}))
    (source,) = json.loads((tmp_path / "run" / "data_report.json").read_text())["sources"]
    assert source["bad"] == {}
    assert source["changed"] == changed
    from trainer.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(data_job(tmp_path, path).spec.model)
    assert ("end of something" in tokenizer.decode(data.token_ids(0))) == (not changed)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["user", "gpt", "[{", "{'a'"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "from", "content", "value", "type", "text", "tool_calls", "function", "name", "arguments"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("shape", FORMATS, ids=lambda shape: shape.name)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_row_whatever_it_holds_ends_in_anything_but_a_conversation_or_a_bad_row(
    shape: DatasetFormat, data: st.DataObject
) -> None:
    names = re.findall(r"\w+(?=[:,]|$)", re.sub(r"\[.*?\]", "", shape.columns)) + ["tools", "system", "history"]
    row = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON_VALUES)))
    with contextlib.suppress(BadRow):
        assert isinstance(parsed(row, shape), Conversation)
