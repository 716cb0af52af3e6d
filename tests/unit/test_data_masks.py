"""What is trained: exactly the assistant's words and their end marker, on exactly the ids of apply_chat_template.

A mask that is off by one turn teaches the model to speak for the user, and no loss curve shows it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.data_job import CHATML_UNMARKED, LLAMA3, TEMPLATES, THINKING, write_tokenizer
from trainer.data.encode import Encoded, Encoder
from trainer.data.render import Rendered, Renderer
from trainer.data.tokenizer import load_tokenizer
from trainer.run.chat_templates.chatml import CHATML
from trainer.run.exits import BadInput
from trainer.run.formats.conversation import BadRow, Conversation, Turn
from trainer.run.settings.model import ModelSpec, SpecialTokens

FAMILIES = ("byte-level", "llama3", "nfc", "sentencepiece")

words = st.one_of(
    st.text(max_size=30),
    st.sampled_from([" lead", "trail \n", "\n\n", "<|im_end|>", "say <|im_start|>user\n", "</s>", "<s>", "e\u0301 Å A\u030a", "🐬👩\u200d👩\u200d👧", "\u200f עברית", "\ue0f0", "a\r\nb", "\tx", "[/INST]", "assistant"]),
)  # fmt: skip
content = st.lists(words, min_size=1, max_size=4).map("".join)
said = content.filter(lambda text: bool(text.strip()))


@st.composite
def chats(draw: st.DrawFn) -> list[Turn]:
    turns = [Turn("system", draw(content))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Turn("user", draw(said)), Turn("assistant", draw(said))]
    return turns


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizers") / request.param, request.param, None)


def load(folder: Path, template: str, end: str | None = None) -> Any:
    end = end or {"llama3": "<|eot_id|>", "mistral": "</s>"}.get(template, "<|im_end|>")
    text = TEMPLATES.get(template, template)
    spec = ModelSpec(base=str(folder), chat_template=text, special_tokens=SpecialTokens(eos_token=end))
    return load_tokenizer(spec)


def encode(tokenizer: Any, conversation: Conversation, *, inputs: bool = False, last: bool = False) -> Encoded:
    rendered = Renderer(tokenizer, inputs, last).render(conversation)
    return Encoder(tokenizer).encode([rendered], [conversation.text is not None])


def trained_text(tokenizer: Any, turns: list[Turn], **options: bool) -> list[str]:
    """The trained passages, decoded."""
    encoded = encode(tokenizer, Conversation(turns), **options)
    on = encoded.weights > 0
    cuts = np.flatnonzero(np.diff(on)) + 1
    parts = [part for part in np.split(np.arange(len(on)), cuts) if on[part[0]]]
    return [tokenizer.decode(encoded.tokens[part].tolist(), skip_special_tokens=False) for part in parts]


@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_equal_apply_chat_template_and_the_mask_covers_each_answer(folder: Path, template: str) -> None:
    tokenizer = load(folder, template)
    renderer, encoder = Renderer(tokenizer, False, False), Encoder(tokenizer)
    # transformers loses answers that begin with a space where the tokenizer trims offsets: its mask is no measure there.
    has_right_masks = template == "marked" and folder.name in ("byte-level", "nfc")

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(chats(), min_size=1, max_size=3))
    def check(batch: list[list[Turn]]) -> None:
        rendered = [renderer.render(Conversation(turns)) for turns in batch]
        encoded = encoder.encode(rendered, [False] * len(batch))
        ends = np.cumsum(encoded.lengths)
        for turns, item, end, length in zip(batch, rendered, ends, encoded.lengths, strict=True):
            ids, weights = encoded.tokens[end - length : end].tolist(), encoded.weights[end - length : end]
            messages = [turn.message() for turn in turns]
            theirs = tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=has_right_masks
            )
            assert ids == theirs["input_ids"]
            if has_right_masks:
                assert [0, *theirs["assistant_masks"][1:]] == (weights > 0).astype(int).tolist()
            answers = [turn.content for turn in turns if turn.role == "assistant"]
            assert len(item.spans) == len(answers)
            for span, answer in zip(item.spans, answers, strict=True):
                passage = item.text[span.start : span.end]
                assert passage.strip().startswith(answer.strip())
                assert passage == passage.removesuffix(tokenizer.eos_token) + tokenizer.eos_token
                assert len(passage) <= len(answer) + len(tokenizer.eos_token) + (template == "mistral"), "one space"
                assert not item.text[span.end :].startswith(tokenizer.eos_token) or "</s>" in answer + passage

    check()


def test_offsets_counted_from_bytes_are_those_of_the_library(folder: Path) -> None:
    tokenizer = load(folder, "unmarked")
    texts = ["Größe 🐬👩\u200d👩\u200d👧", " a\n\n  b", "e\u0301 A\u030a", "привет<|im_end|>你好", "plain words"]
    rendered = [
        Renderer(tokenizer, False, False).render(Conversation([Turn("user", text), Turn("assistant", text)]))
        for text in texts
    ]
    counted, asked = Encoder(tokenizer), Encoder(tokenizer)
    assert counted.knows_bytes == (folder.name != "sentencepiece")
    asked._token_bytes = None
    by_bytes, by_library = (encoder.encode(rendered, [False] * len(texts)) for encoder in (counted, asked))
    assert by_bytes.tokens.tolist() == by_library.tokens.tolist()
    assert by_bytes.weights.tolist() == by_library.weights.tolist()


TURNS = [Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Bye"), Turn("assistant", "So long.")]  # fmt: skip


@pytest.mark.parametrize("template", ["marked", "unmarked", "llama3"])
def test_the_end_marker_is_trained_and_the_newline_behind_it_is_not(folder: Path, template: str) -> None:
    tokenizer = load(folder, template)
    end = tokenizer.eos_token
    assert trained_text(tokenizer, TURNS) == [f"Hello.{end}", f"So long.{end}"], "no header, no newline, nothing less"


def test_a_turn_is_left_out_or_weighted_and_the_last_alone_can_be_trained(folder: Path) -> None:
    tokenizer = load(folder, "unmarked")
    silenced = [*TURNS[:2], Turn("assistant", "Hello.", weight=0.0), *TURNS[3:]]
    assert [text.strip() for text in trained_text(tokenizer, silenced)] == ["So long.<|im_end|>"]
    assert [text.strip() for text in trained_text(tokenizer, TURNS, last=True)] == ["So long.<|im_end|>"]
    halved = encode(tokenizer, Conversation([*TURNS[:2], Turn("assistant", "Hello.", weight=0.5), *TURNS[3:]]))
    assert set(halved.weights.tolist()) == {0.0, 0.5, 1.0}
    everything = encode(tokenizer, Conversation(TURNS), inputs=True)
    assert everything.weights.tolist() == [0.0] + [1.0] * (len(everything.weights) - 1)


def test_generation_markers_without_the_end_marker_still_train_the_end(folder: Path) -> None:
    short = CHATML.replace("{{ message['content'] + '<|im_end|>' }}{% endgeneration %}", "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}")  # fmt: skip
    assert short != CHATML
    assert [text.strip() for text in trained_text(load(folder, short), TURNS)] == [
        "Hello.<|im_end|>",
        "So long.<|im_end|>",
    ]


def test_what_a_user_writes_is_never_trained_even_if_it_looks_like_the_assistant(folder: Path) -> None:
    tokenizer = load(folder, "unmarked")
    turns = [Turn("user", "<|im_end|>\n<|im_start|>assistant\nI am trained<|im_end|>\n"), Turn("assistant", "No.")]
    assert [text.strip() for text in trained_text(tokenizer, turns)] == ["No.<|im_end|>"]


def test_the_beginning_of_text_comes_once_though_template_and_tokenizer_both_add_it(folder: Path) -> None:
    tokenizer = load(folder, "llama3")
    chat = encode(tokenizer, Conversation(TURNS)).tokens.tolist()
    assert chat.count(tokenizer.bos_token_id) == 1
    for text in ("A page.", "<s>A page.", "A page.<|eot_id|>"):
        page = encode(tokenizer, Conversation(text=text)).tokens.tolist()
        assert page.count(tokenizer.bos_token_id) <= 1
        assert page.count(tokenizer.eos_token_id) == 1
        assert page[-1] == tokenizer.eos_token_id


def test_a_template_that_takes_contents_apart_keeps_its_masks(folder: Path) -> None:
    tokenizer = load(folder, THINKING)
    thought = [Turn("user", "2 + 2?"), Turn("assistant", "<think>easy</think>\n4")]
    assert [text.strip() for text in trained_text(tokenizer, thought)] == ["4<|im_end|>"]
    only_last = THINKING.replace("and '</think>'", "and not loop.last and '</think>'")
    again = [*thought, Turn("user", "3 + 3?"), Turn("assistant", "<think>easy too</think>\n6")]
    assert [text.strip() for text in trained_text(load(folder, only_last), again)] == [
        "4<|im_end|>",
        "<think>easy too</think>\n6<|im_end|>",
    ]


def test_a_template_that_bears_no_marks_is_masked_by_prefixes_or_refused(folder: Path) -> None:
    counts = CHATML_UNMARKED.replace(
        "{{ message['content'] +", "{{ message['content'] | length }}{{ ' ' + message['content'] +"
    )
    assert counts != CHATML_UNMARKED
    assert [text.strip() for text in trained_text(load(folder, counts), TURNS[1:3])] == ["6 Hello.<|im_end|>"]
    thought = [Turn("user", "2 + 2?"), Turn("assistant", "<think>easy</think>\n4")]
    rendered = Renderer(load(folder, counts), False, False, reasoning=False).render(Conversation(thought))
    zero = next(span for span in rendered.spans if not span.weight)
    assert rendered.text[zero.start : zero.end] == "<think>easy</think>"
    with pytest.raises(BadRow, match=r"turn 2 is written differently.*generation"):
        trained_text(load(folder, "{{ messages | length }}" + counts), TURNS[1:])


def test_function_calls_are_trained_with_or_without_a_template_that_knows_them(folder: Path) -> None:
    call = {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
    turns = [Turn("user", "Add."), Turn("assistant", "", extra=call), Turn("tool", "2"), Turn("assistant", "2.")]
    first, second = trained_text(load(folder, "unmarked"), turns)
    assert first.strip() == '{"name": "add", "arguments": {"a": 1}}<|im_end|>'
    assert second.strip() == "2.<|im_end|>"
    knows = CHATML_UNMARKED.replace(
        "{{ message['content'] + '<|im_end|>' }}",
        "{% for call in message.tool_calls or [] %}{{ '[CALL]' + call.function.name }}{% endfor %}{{ message['content'] + '<|im_end|>' }}",
    )
    assert knows != CHATML_UNMARKED
    first, second = trained_text(load(folder, knows), turns)
    assert (first.strip(), second.strip()) == ("[CALL]add<|im_end|>", "2.<|im_end|>")


def test_a_date_in_a_template_does_not_change_the_data_of_a_run(folder: Path) -> None:
    dated = load(folder, "{{ strftime_now('%Y-%m-%d') }}" + LLAMA3, "<|eot_id|>")
    rendered = Renderer(dated, False, False).render(Conversation(TURNS))
    assert rendered.text.startswith("2024-07-26")


@pytest.mark.parametrize(
    ("special", "template", "says"),
    [
        ({}, "tokenizer", "has no chat template; set model.chat_template"),
        ({"pad_token": ""}, "chatml", None),
        ({"pad_token": "</s>"}, "chatml", "pads with its end token </s>; set model.special_tokens.pad_token"),
        ({"eos_token": ""}, "chatml", "no end-of-text token; set model.special_tokens.eos_token"),
        ({}, "/nowhere/template.jinja", "cannot be read"),
    ],
)
def test_an_incomplete_tokenizer_is_refused_with_what_to_set(
    tmp_path: Path, special: dict[str, str], template: str, says: str | None
) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", "byte-level", None, **special)
    spec = ModelSpec(base=str(folder), chat_template=template)
    if says is None:
        assert load_tokenizer(spec).pad_token == "<pad>", "a reserved padding token is taken, never the end token"
        return
    with pytest.raises(BadInput, match=says.replace("|", r"\|")):
        load_tokenizer(spec)


def test_added_tokens_are_single_tokens_and_grow_the_vocabulary(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    before = len(load_tokenizer(ModelSpec(base=str(folder))))
    tokenizer = load_tokenizer(ModelSpec(base=str(folder), added_tokens=("<|tool|>", "<|end_tool|>")))
    assert len(tokenizer) == before + 2
    assert tokenizer.encode("<|tool|>", add_special_tokens=False) == [before]


def test_a_marker_that_swallows_white_space_does_not_take_the_header_into_the_mask(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in description["added_tokens"]:
        token["rstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    template = (
        "{% for m in messages %}{{ m.role + '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant<|im_start|>' }}{% endif %}"
    )
    turns = [Turn("user", "code"), Turn("assistant", "\n    return 1")]
    assert trained_text(load(folder, template), turns) == ["return 1<|im_end|>"], "as the tokenizer wrote it"


def test_an_end_marker_counts_though_the_tokenizer_does_not_call_it_special(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", "byte-level", None)
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in description["added_tokens"]:
        token["special"] = token["special"] and not token["content"].startswith("<|im_")
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    tokenizer = load(folder, "unmarked", "</s>")
    assert [text.strip() for text in trained_text(tokenizer, TURNS)] == ["Hello.<|im_end|>", "So long.<|im_end|>"]


def test_train_true_on_a_user_turn_trains_it(folder: Path) -> None:
    turns = [
        Turn("user", "Hi", weight=1.0),
        Turn("assistant", "Hello."),
        Turn("user", "Bye"),
        Turn("assistant", "So long."),
    ]
    trained = [text.strip() for text in trained_text(load(folder, "unmarked"), turns)]
    assert trained == ["Hi<|im_end|>", "Hello.<|im_end|>", "So long.<|im_end|>"]


def test_the_tool_use_template_is_taken_where_there_are_tools(folder: Path) -> None:
    tokenizer = load(folder, "unmarked")
    tokenizer.chat_template = {"default": CHATML_UNMARKED, "tool_use": "{{ tools | tojson + '\n' }}" + CHATML_UNMARKED}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    for some in (None, tools):
        text = Renderer(tokenizer, False, False).render(Conversation(TURNS, tools=some)).text
        messages = [turn.message() for turn in TURNS]
        assert text == tokenizer.apply_chat_template(messages, tools=some, tokenize=False)
    assert not Renderer(tokenizer, False, False).moves_tools(Conversation(TURNS, tools=tools))


def test_a_shape_that_was_learned_gives_the_spans_that_looking_gives(folder: Path) -> None:
    tokenizer = load(folder, "mistral")
    turns = [
        Turn("user", " a\n"),
        Turn("assistant", "  b \n"),
        Turn("user", "[/INST] b</s>"),
        Turn("assistant", "</s>"),
    ]
    learned = Renderer(tokenizer, False, False)
    learned.render(Conversation([Turn("user", "x"), Turn("assistant", "y")] * 2))
    looked = Renderer(tokenizer, False, False)
    looked._plain._shapes[tuple(turn.role for turn in turns)] = None
    assert learned.render(Conversation(turns)) == looked.render(Conversation(turns))


@pytest.mark.parametrize(
    "label", ["LlamaTokenizerFast", "Qwen2TokenizerFast", "GPT2TokenizerFast", "GemmaTokenizerFast", "T5TokenizerFast"]
)
def test_a_tokenizer_that_is_labelled_as_another_familys_gives_the_ids_of_its_file(
    folder: Path, tmp_path: Path, label: str
) -> None:
    from tokenizers import Tokenizer

    labelled = tmp_path / "labelled"
    shutil.copytree(folder, labelled)
    config = json.loads((labelled / "tokenizer_config.json").read_text())
    (labelled / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": label}))
    tokenizer = load(labelled, "unmarked")
    text = "what is two plus two?  Größe ça\n\n  def f(x): 12345 e\u0301"
    expected = Tokenizer.from_file(str(labelled / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, add_special_tokens=False) == expected
    assert Encoder(tokenizer).encode([Rendered(text, [])], [False]).tokens.tolist() == expected
