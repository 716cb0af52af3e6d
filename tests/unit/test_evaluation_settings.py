"""A best checkpoint of nothing, an early stop by a number that nobody measures, a set of two sizes: told before anything is paid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.config.problems import SpecErrors
from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec
from launcher.plan.data_facts import DataFacts, held_out_sequences
from trainer.run.contradictions import problems
from trainer.run.exits import BadInput
from trainer.run.measures import direction_of, directions, stated_best
from trainer.run.prompts import read_prompts
from trainer.run.result import result_settings
from trainer.run.settings.data import DataSpec
from trainer.run.settings.evaluate import EvaluateSpec
from trainer.run.spec import TrainSpec

SETS = [{"name": "held-out", "fraction": 0.1}, {"name": "mine", "path": "/test.jsonl"}]


def spec(data: dict[str, Any] | None = None, **groups: dict[str, Any]) -> TrainSpec:
    return TrainSpec.model_validate({
        "name": "t", "model": {"base": "owner/base"}, "data": {"sources": [{"path": "/rows.jsonl"}], **(data or {})}, **groups,
    })  # fmt: skip


SAID = [
    ({"validation": [{"name": "a"}]}, {}, "data.validation.0", "says neither `path` nor how much"),
    ({"validation": [{"name": "a", "count": 3, "fraction": 0.1}]}, {}, "data.validation.0.count", "contradicts `fraction`"),
    ({"validation": [*SETS, {"name": "mine", "count": 1}]}, {}, "data.validation.2.name", "the name of two sets"),
    ({"validation": SETS, "validation_count": 4}, {}, "data.validation_count", "contradicts data.validation"),
    ({"validation": [{"name": "a", "count": 3, "filter": "x > 1"}]}, {}, "data.validation.0.filter", "needs `path`"),
    ({}, {"checkpoint": {"keep_best": "eval_los"}}, "checkpoint.keep_best", "nothing measures 'eval_los'; there are eval_loss"),
    ({"validation_fraction": 0.0}, {"checkpoint": {"keep_best": "eval_loss"}}, "checkpoint.keep_best", "nothing is held out"),
    ({}, {"train": {"stop": {"metric": "mine/loss"}}}, "train.stop", "nothing measures 'mine/loss'"),
    ({}, {"train": {"stop": {}, "evaluate_every": "never"}}, "train.stop", "evaluate_every never"),
    ({}, {"train": {"stop": {"direction": "higher"}}}, "train.stop", "would take the worst eval_loss"),
    ({}, {"export": {"which": "best"}}, "export.which", "needs checkpoint.keep_best"),
    ({}, {"evaluate": {"metrics": ["exact"]}}, "evaluate.metrics.0", "no score is called 'exact'"),
    ({}, {"evaluate": {"metrics": ["contains", "x.py:contains"]}}, "evaluate.metrics.1", "the name of another measure"),
    ({}, {"evaluate": {"metrics": ["x.py:loss"]}}, "evaluate.metrics.0", "loss is the name of another measure"),
    ({}, {"evaluate": {"metrics": ["contains"], "questions": 0}}, "evaluate.metrics", "nothing is asked"),
    ({"validation_fraction": 0.0}, {"evaluate": {"questions": 2}}, "evaluate.questions", "needs a validation set"),
    ({}, {"evaluate": {"questions": 2, "questions_of": "yours"}}, "evaluate.questions_of", "there are held-out"),
    ({}, {"evaluate": {"questions": 2, "top_p": 0.5}}, "evaluate.top_p", "temperature 0"),
    ({}, {"evaluate": {"prompts": ["Hi"]}, "train": {"evaluate_every": "never"}}, "evaluate.prompts", "nothing would be asked"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "groups", "where", "says"), SAID, ids=[f"{row[2]}-{n}" for n, row in enumerate(SAID)])
def test_what_could_not_be_done_is_told_with_its_key(data: dict, groups: dict, where: str, says: str) -> None:
    found = {".".join(map(str, problem.where)): problem.message for problem in problems(spec(data, **groups))}
    assert says in found.get(where, f"only {found}")


def test_a_job_of_all_of_it_contradicts_nothing() -> None:
    whole = spec(
        {"validation": SETS},
        train={"stop": {"metric": "mine/token_accuracy"}},
        checkpoint={"keep_best": {"metric": "polite", "direction": "lower"}},
        evaluate={"metrics": ["exact_match", "/scores.py:polite"], "prompts": ["Hi"], "questions_of": "mine"},
        export={"which": "best"},
    )
    assert problems(whole) == []
    best = stated_best(whole)
    assert best is not None
    assert whole.train.stop is not None
    assert (direction_of(whole, best), direction_of(whole, whole.train.stop)) == ("lower", "higher")
    assert {"eval_loss", "held-out/perplexity", "mine/entropy", "polite"} <= set(directions(whole))


def test_a_checkpoint_of_before_goes_on_and_so_does_one_with_other_questions() -> None:
    plain, asked = (
        spec(),
        spec({}, evaluate={"prompts": ["Hi"]}, train={"stop": {}}, checkpoint={"keep_best": "eval_loss"}),
    )
    assert result_settings(plain) == result_settings(asked)
    assert result_settings(plain) != result_settings(spec({"validation": SETS}))


def test_the_sets_of_today_are_sets_too() -> None:
    def sets(**data: Any) -> list[tuple[str, float | None, int | None]]:
        return [(one.name, one.fraction, one.count) for one in spec(data).data.validation_sets]

    assert sets() == [("held-out", 0.01, None)]
    assert sets(validation_count=7) == [("held-out", None, 7)]
    assert sets(validation_fraction=0.0) == []
    assert sets(validation=SETS) == [("held-out", 0.1, None), ("mine", None, None)]


def test_an_evaluation_is_planned_over_all_sets(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("x" * 44_000)
    data = DataSpec.model_validate({
        "sources": [{"path": "/rows.jsonl"}], "sequence_length": 100,
        "validation": [{"name": "a", "fraction": 0.1}, {"name": "b", "path": str(tmp_path / "test.jsonl")}],
    })  # fmt: skip
    assert held_out_sequences(data, DataFacts("estimate", "", 900)) == pytest.approx(100 + 10_000 / 99)
    assert held_out_sequences(data, DataFacts("prepared", "", 900, held_out=37)) == 37


def test_prompts_are_read_in_both_forms_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    lines, rows = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("What is a whale?\n\n And a seal?\n")
    rows.write_text('{"prompt": "2+2?", "answer": "4"}\n{"messages": [{"role": "user", "content": "Hi"}]}\n')
    asked = [prompt.messages[-1]["content"] for prompt in read_prompts(EvaluateSpec(prompts=str(lines)))]
    assert asked == ["What is a whale?", "And a seal?"]
    assert [prompt.answer for prompt in read_prompts(EvaluateSpec(prompts=str(rows)))] == ["4", None]
    for text, says in (
        ('{"prompt": "a"}\n{"promt": "b"}\n', r":2: states neither `prompt` nor `messages`"),
        ("[1]\n", r":1: is no prompt"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n', r":1: ends with the assistant's turn"),
        ("{\n", r":1: Expecting"),
        ("\n", r"holds no prompt"),
    ):
        rows.write_text(text)
        with pytest.raises(BadInput, match=says):
            read_prompts(EvaluateSpec(prompts=str(rows)))


def test_files_are_found_beside_the_job_and_named_where_they_lack(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "scores.py").write_text("def polite(prompt, answer, expected):\n    return 1.0\n")
    path = tmp_path / "job.yaml"

    def load(evaluate: str, validation: str = "[{name: mine, path: rows.jsonl}]") -> JobSpec:
        path.write_text(
            "name: t\nmodel: {base: owner/base}\n"
            f"data: {{sources: [{{path: rows.jsonl}}], validation: {validation}}}\ntrain: {{global_batch: 1}}\nevaluate: {evaluate}\n"
        )
        return load_job(path)

    job = load("{metrics: [scores.py:polite]}")
    assert job.evaluate.metrics == (f"{tmp_path}/scores.py:polite",)
    assert job.data.validation_sets[0].path == str(tmp_path / "rows.jsonl")
    for evaluate, says in (
        ("{metrics: [score.py:polite]}", "evaluate.metrics[0]: no such file"),
        ("{metrics: [scores.py:rude]}", "defines no function rude; it has polite"),
        ("{prompts: ask.txt}", "evaluate.prompts: no such file"),
    ):
        with pytest.raises(SpecErrors) as caught:
            load(evaluate)
        assert says in str(caught.value.problems[0])
    with pytest.raises(SpecErrors) as caught:
        load("{questions: 1}", "[{name: mine, path: row.jsonl}]")
    assert "data.validation[0].path: no such file" in str(caught.value.problems[0])
