"""What a template does to conversations is told before a GPU is paid for: answers without an end, words that vanish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.data_job import chat, data_job, write_rows, write_tokenizer
from tests.unit.test_data_prepare import report_of, texts, write_as
from trainer.data.prepare import prepare
from trainer.data.tokenizer import load_tokenizer
from trainer.run.exits import BadInput


def said(*answers: str, **extra: Any) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": answer, **extra}]}
        for i, answer in enumerate(answers)
    ]


def test_a_template_that_never_ends_an_answer_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", said("one", "two"))
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    with pytest.raises(BadInput, match="none of the 2 trained answers ends with a token that stops generation"):
        prepare(data_job(tmp_path, path, model={"chat_template": template}))


def test_where_nothing_is_left_the_error_says_what_became_of_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", said("word " * 200, "word " * 300))
    with pytest.raises(BadInput, match=r"left to train on: of 2 rows 2 longer than data.sequence_length; data_report"):
        prepare(data_job(tmp_path, path))


def test_answers_without_an_end_among_others_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "a.jsonl", [chat("q", "one", "r", "two")])
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token if loop.last else '\n') }}{% endfor %}"
    prepare(data_job(tmp_path, path, model={"chat_template": template}))
    assert report_of(tmp_path)["sources"][0]["told"]["ends"] == {"<|im_end|>": 1}
    assert "warning: 1 of 2 trained answers end with no token that stops generation" in capsys.readouterr().err


def test_what_ends_the_answers_is_among_the_stop_tokens_of_the_entry(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", eos_token="</s>")
    (tokenizer / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    job = data_job(tmp_path, write_rows(tmp_path / "a.jsonl", said("one")), tokenizer=tokenizer)
    first = prepare(job)
    own = load_tokenizer(job.spec.model)
    assert first.meta["end_tokens"] == sorted({1, 7, own.convert_tokens_to_ids("<|im_end|>")})
    assert "answers end with <|im_end|>" in report_of(tmp_path)["warnings"][0]
    (tokenizer / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert prepare(job).key != first.key, "what stops generation decides what is trained"


def test_what_the_template_leaves_out_is_counted_and_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        *said("a", "b", reasoning_content="long thoughts"),
        {"messages": [{"role": "system", "content": "Be kind."}, *said("c")[0]["messages"]]},
    ]
    template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    prepare(data_job(tmp_path, write_rows(tmp_path / "a.jsonl", rows), model={"chat_template": template}))
    told = report_of(tmp_path)["sources"][0]["told"]
    assert told["gone"] == {"thoughts": 2, "system message": 1}
    assert (told["said"], told["trained"]) == (2 * len("along thoughts") + 1, 3)
    err = capsys.readouterr().err
    assert "leaves out the thoughts of 2 conversations" in err
    assert "leaves out the system message of 1 conversations" in err
    assert "89.7% of what the assistants say is not trained" in err


def test_unrolled_answers_stay_with_their_conversation(tmp_path: Path) -> None:
    rows = [
        {"messages": [turn for n in range(3) for turn in said(f"answer {n} of {i}", reasoning_content=f"thought {n}")[0]["messages"]]}
        for i in range(20)
    ]  # fmt: skip
    template = (
        "{% for m in messages %}{{ m.role + '\n' }}{% if loop.last and m.reasoning_content %}"
        "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    )
    path = write_rows(tmp_path / "a.jsonl", rows)
    job = data_job(tmp_path, path, model={"chat_template": template}, unroll=True, validation_count=5)
    data = prepare(job)
    assert (len(data.train), len(data.validation)) == (15 * 3, 5 * 3)
    held_out = {int(row) for row in data.origin[data.validation, 1]}
    assert len(held_out) == 5
    assert not held_out & {int(row) for row in data.origin[data.train, 1]}, "a held-out answer is trained elsewhere"
    assert report_of(tmp_path)["sources"][0]["told"]["gone"] == {}


def test_the_nulls_that_arrow_puts_into_objects_reach_no_template(tmp_path: Path) -> None:
    def row(name: str, **arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        tool = {"name": name, "parameters": {"properties": {key: {"type": "string"} for key in arguments}}}
        turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        return {
            "messages": [*turns, {"role": "tool", "content": "ok"}, {"role": "assistant", "content": "done"}],
            "tools": [tool],
        }

    rows = [row("one", left="a"), row("two", right="b")]
    template = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{{ eos_token }}{% endfor %}"
    expected = None
    for name in ("a.jsonl", "a.parquet", "exported.jsonl"):
        path = tmp_path / name
        if name == "exported.jsonl":
            import pyarrow.parquet as pq

            write_rows(path, pq.read_table(tmp_path / "a.parquet").to_pylist())
            assert "null" in path.read_text()
        else:
            write_as(path, rows)
        job = data_job(tmp_path, path, name=name.replace(".", "-"), model={"chat_template": template})
        found = texts(tmp_path, prepare(job), job)
        expected = expected or found
        assert found == expected, name
    assert "null" not in "".join(expected or ["null"])


def test_a_null_that_a_function_takes_is_kept(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "one", "arguments": {"left": None, "other": None}}}
    turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    tools = [{"name": "one", "parameters": {"properties": {"left": {"default": None}}}}]
    template = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{{ eos_token }}{% endfor %}"
    job = data_job(
        tmp_path,
        write_rows(tmp_path / "a.jsonl", [{"messages": turns, "tools": tools}]),
        model={"chat_template": template},
    )
    text = texts(tmp_path, prepare(job), job)[0]
    assert '"arguments": {"left": null}' in text
    assert '"default": null' in text
