"""A card is published: no home folder, no password, and no line of somebody else's in its front matter."""

from __future__ import annotations

import re

import yaml

from tests.unit.test_card import FACTS
from trainer.export import card, card_text


def test_a_path_becomes_a_name_and_a_url_loses_its_password() -> None:
    assert card.shorten("/home/me/secret project/data.jsonl") == "data.jsonl"
    assert card.shorten("~/data.jsonl") == "data.jsonl"
    assert card.shorten("https://me:word@host/x.jsonl?token=abc#d") == "https://host/x.jsonl"
    assert card.shorten("s3://key:word@bucket/x") == "s3://bucket/x"
    assert card.shorten("owner/name") == "owner/name"


def test_a_newline_in_a_path_writes_nothing_into_the_front_matter() -> None:
    for base in (
        "/models/x\nlicense: mit\ntags: [a]",
        "owner/na\nme: x",
        "yes",
        "1e5",
        "- x",
        "{a: b}",
        "# x",
        "a: b",
        "\x85license: mit",
    ):
        text = card_text.front_matter(FACTS | {"base_model": card.shorten(base), "license": base, "tags": [base]}, {})
        (head,) = re.findall(r"\A---\n(.*)---\n\Z", text, re.DOTALL)
        read = yaml.safe_load(head)
        assert list(read) == ["license", "base_model", "library_name", "pipeline_tag", "tags"], base
        assert (read["base_model"], read["license"]) == (card.shorten(base), base)
        assert read["tags"] == ["dolphin", base]


def test_the_configuration_names_no_path_wherever_one_stands() -> None:
    given = {"model": {"base": "/home/me/base", "chat_template": "/home/me/chat.jinja"}, "data": {"sources": [{"path": "s3://a:b@c/d"}]},
             "train": {"unfrozen": {"spectrum": {"snr": "/home/me/snr.json"}}}, "text": "/not a path\nbut lines"}  # fmt: skip
    shown = str(card._published(given))
    assert "/home" not in shown
    assert "a:b@" not in shown
    assert "/not a path\\nbut lines" in shown
