"""A conversation that goes on behind its end, shows what moves a terminal, or loses half of a character."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_job import write_model
from trainer.finished import chat
from trainer.run.chat_templates.registry import TEMPLATES
from trainer.run.exits import BadInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import PreTrainedTokenizerFast

    folder = write_model(tmp_path_factory.mktemp("chat") / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES["chatml"].text
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speaker(folder: Path) -> chat.Speaker:
    return chat.Speaker(folder)


def test_lines_of_a_script_are_turns_and_reset_forgets_them(
    speaker: chat.Speaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[dict[str, str]]] = []

    def answer(conversation: chat.Conversation, *options: Any) -> str:
        asked.append(conversation.messages())
        return "the sea"

    monkeypatch.setattr(speaker, "answer", answer, raising=False)
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("hello\n\nagain\n/reset\n/system Be brief.\n/what\nanew\n/quit\nnever\n")
    )
    chat.converse(speaker, chat.Conversation("You are Dolphin."), 8, True)
    roles = [[(turn["role"], turn["content"]) for turn in turns] for turns in asked]
    assert roles[1] == [("system", "You are Dolphin."), ("user", "hello"), ("assistant", "the sea"), ("user", "again")]
    assert roles[2] == [("system", "Be brief."), ("user", "anew")]
    assert len(asked) == 3
    assert "no such command" in capsys.readouterr().err


def test_an_answer_is_printed_as_it_comes_and_is_what_generate_gives(
    speaker: chat.Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = chat.Conversation("", [{"role": "user", "content": "the sea"}])
    said = speaker.answer(conversation, 6, True)
    ids = speaker.tokenizer.apply_chat_template(conversation.messages(), add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        out = speaker.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    assert said == speaker.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    assert len(capsys.readouterr().out.rstrip("\n")) == len(said.rstrip("\n"))
    with pytest.raises(BadInput, match="/reset"):
        speaker.answer(chat.Conversation("", [{"role": "user", "content": "sea " * 600}]), 6, True)


def test_a_character_of_several_tokens_is_printed_whole_and_escapes_are_not_obeyed(
    speaker: chat.Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    printer = chat.Printer(speaker.tokenizer)
    printer.put(torch.tensor([[1, 2, 3]]))
    for number in speaker.tokenizer("é\x1b[2J🐬", add_special_tokens=False).input_ids:
        printer.put(torch.tensor([number]))
    printer.end()
    assert capsys.readouterr().out == "é\ufffd[2J🐬"


def test_a_folder_without_a_model_or_a_template_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not load"):
        chat.Speaker(tmp_path)
    with pytest.raises(BadInput, match="no chat template"):
        chat.Speaker(write_model(tmp_path / "plain"))
