"""A score that ends a paid run, an answer that reads another's question, a draw that moves the training's random numbers."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.data_job import chat, data_job, write_rows
from trainer.data.batch import Share
from trainer.data.prepare import main, prepare
from trainer.data.questions import questions_of
from trainer.data.tokenizer import load_tokenizer
from trainer.model import packed
from trainer.model.attention import SEGMENTED
from trainer.rank import answer
from trainer.rank.answer import Chooser, Decoding
from trainer.rank.scores import Scorer, means, tool_calls
from trainer.run.exits import BadInput
from trainer.run.settings.evaluate import EvaluateSpec
from trainer.run.spec import NodeJob, TrainSpec

ROWS = [chat(f"Say {i}?", f"{i}, of course.") for i in range(20)]


def scores(metric: str, answer_text: str, expected: str | None = None) -> float | None:
    return Scorer([metric]).of("question", answer_text, expected).get(metric)


def test_scores_say_what_they_are_called() -> None:
    assert (scores("exact_match", " 4\n", "4"), scores("exact_match", "4.", "4"), scores("exact_match", "4")) == (
        1,
        0,
        None,
    )
    assert (scores("contains", "It is 4.", "4"), scores("contains", "no", "4"), scores("contains", "x", " ")) == (
        1,
        0,
        None,
    )
    assert [scores("json_valid", text) for text in ('{"a": 1}', "```json\n[1]\n```", "{'a': 1}", "")] == [1, 1, 0, 0]
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    same = 'Sure: {"parameters": "{\\"b\\": 2, \\"a\\": 1}", "name": "add"}'
    assert scores("tool_call_match", same, call) == 1
    assert scores("tool_call_match", call.replace("1", "3"), call) == 0
    assert scores("tool_call_match", "1 + 2 is 3", call) == 0
    assert scores("tool_call_match", call, "3") is None
    assert tool_calls('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}] {') == [
        ("f", "{}"),
        ("g", "{}"),
    ]
    assert means([{"a": 1.0}, {"a": 0.0, "b": 2.0}, {}]) == {"a": 0.5, "b": 2.0}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def f(q, a, e):\n    return 1 / 0\n", "scores.py:2: ZeroDivisionError"),
        ("def f(q, a, e):\n    raise SystemExit\n", "scores.py:2: SystemExit"),
        ("def f(q, a, e):\n    return 'very good'\n", "ValueError: could not convert"),
        ("def f(q):\n    return 1\n", "TypeError"),
        ("import nothing_of_that_name\n", "scores.py:1: ModuleNotFoundError"),
        ("def g(q, a, e):\n    return 1\n", "KeyError: 'f'"),
    ],
)
def test_a_function_that_fails_is_a_warning_with_its_line_once(
    tmp_path: Path, capsys: Any, body: str, says: str
) -> None:
    (tmp_path / "scores.py").write_text(body)
    scorer = Scorer(["contains", f"{tmp_path}/scores.py:f"])
    assert [scorer.of("q", "blue", "blue") for _ in range(3)] == [{"contains": 1.0}] * 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: f failed at ")
    assert says in lines[0]


def test_questions_are_the_prompts_and_then_the_first_of_the_set(tmp_path: Path) -> None:
    job = data_job(tmp_path, write_rows(tmp_path / "a.jsonl", ROWS), validation_count=6)
    data, tokenizer = prepare(job), load_tokenizer(job.spec.model)

    def asked(**evaluate: Any) -> list[tuple[str, str, str | None]]:
        spec = TrainSpec.model_validate(job.spec.model_dump(exclude_defaults=True) | {"evaluate": evaluate})
        return [(one.origin, one.text, one.expected) for one in questions_of(spec, tokenizer, data)]

    found = asked(prompts=["the sea"], questions=2)
    assert [origin for origin, _, _ in found] == ["prompts", "held-out", "held-out"]
    assert found[0] == ("prompts", "the sea", None)
    assert all(text == f"Say {expected.split(',')[0]}?" for _, text, expected in found[1:] if expected)
    assert len(asked(questions=99)) == 6
    assert len(asked(metrics=["contains"])) == 4
    with pytest.raises(BadInput, match=r"prompt 2 has \d+ tokens, and data.sequence_length is 256"):
        asked(prompts=["a", "the sea " * 400])
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(BadInput, match="chat template refuses prompt 1"):
        asked(prompts=["a"])


class Engine:
    """A model of one process behind the two calls that answers need; counts its forward passes."""

    device = torch.device("cpu")

    def __init__(self, model: Any, length: int) -> None:
        model = copy.deepcopy(model)
        model.set_attn_implementation(SEGMENTED)
        self.module = packed.PackedModel(model, loss_chunk=64).eval()
        self.job = SimpleNamespace(spec=SimpleNamespace(data=SimpleNamespace(sequence_length=length)))
        self.widths: list[int] = []

    @torch.no_grad()
    def labelled_logits(self, b: Any) -> torch.Tensor:
        self.widths.append(b.ids_BT.numel())
        self.module.head.gives_logits = True
        return self.module(
            b.ids_BT, b.labels_BT, b.weights_BT, b.positions_BT, b.cu_seqlens, b.max_seqlen, b.labelled_N
        )


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(everywhere: list[Any], own: Any) -> None:
        everywhere[0] = own

    monkeypatch.setattr(answer.dist, "all_gather_object", gather)
    monkeypatch.setattr(answer, "sum_over_ranks", lambda *values, device: [float(value) for value in values])


@pytest.mark.usefixtures("alone")
def test_answers_are_those_of_transformers_however_many_are_asked_at_once() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ).eval()
    chance = random.Random(0)
    asked: Any = [SimpleNamespace(ids=tuple(chance.choices(range(50), k=chance.randint(3, 20)))) for _ in range(7)]
    wanted = []
    for question in asked:
        ids = torch.tensor([question.ids])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, eos_token_id=59, pad_token_id=0,
            suppress_tokens=[57, 58],
        )[0, len(question.ids) :].tolist()  # fmt: skip
        wanted.append(out[: out.index(59)] if 59 in out else out)
    decoding = Decoding(EvaluateSpec(max_new_tokens=9), frozenset({59}), 60, 0, 0)
    for length in (32, 400):
        engine: Any = Engine(model, length)
        engine_logits = engine.labelled_logits

        def without_two(batch: Any, logits: Any = engine_logits) -> torch.Tensor:
            found = logits(batch).clone()
            found[:, [57, 58]] = -torch.inf
            return found

        engine.labelled_logits = without_two
        before = torch.get_rng_state()
        assert answer.answers(engine, asked, Share(0, 1, 2), decoding, 3, lambda: None) == wanted
        assert torch.equal(torch.get_rng_state(), before), "the training's random numbers moved"
        assert max(engine.widths) <= max(2 * length, 32 + 8)


def test_drawn_tokens_depend_on_seed_step_and_question_and_keep_to_the_likeliest() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 0.7

    def draw(step: int = 1, number: int = 0, **settings: Any) -> list[int]:
        choose = Chooser(Decoding(EvaluateSpec(temperature=1.0, **settings), frozenset(), 50, 7, 0), step, number)
        return [choose(logits) for _ in range(40)]

    assert draw() == draw() != draw(step=2)
    assert draw() != draw(number=1)
    assert set(draw(top_p=1e-9)) == {int(logits.argmax())}
    assert 1 < len(set(draw(top_p=0.5))) < len(set(draw()))


def test_a_set_whose_conversations_ask_nothing_is_told_before_the_ranks_start(tmp_path: Path, capsys: Any) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    for number, (inputs, told) in enumerate(((False, 0), (True, 1))):
        job = data_job(tmp_path, tmp_path / "a.jsonl", name=f"r{number}", validation_count=6, train_on_inputs=inputs)
        values = job.model_dump(exclude_defaults=True)
        values["spec"]["evaluate"] = {"questions": 2}
        path = tmp_path / f"{number}.json"
        path.write_text(NodeJob.model_validate(values).model_dump_json())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trainer.data.prepare.bring_base", lambda *_: None)
            assert main([str(path)]) == 0
        assert capsys.readouterr().err.count("none of its questions is asked") == told
