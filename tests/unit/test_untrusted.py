"""A data set, a log line or a model's name that commands the terminal of whoever looks at it."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.untrusted import shown

ESC, BEL = "\x1b", "\x07"


@pytest.mark.parametrize(
    "attack, left",
    [
        (f"a{ESC}]52;c;cm0gLXJmIH4={BEL}b", "ab"),
        (f"a{ESC}]8;;https://evil{ESC}\\here{ESC}]8;;{ESC}\\b", "ahereb"),
        (f"a{ESC}]0;root@bank{BEL}b", "ab"),
        (f"a{ESC}[2J{ESC}[1;1H{ESC}[?1049hb", "ab"),
        (f"a{ESC}Pq#0{ESC}\\b", "ab"),
        (f"a{ESC}cb", "ab"),
        ("a\x9b2Jb", "a\\u009b2Jb"),
        ("a\x9d52;c;eA==\x9cb", "a\\u009d52;c;eA==\\u009cb"),
        ("file\u202etxt.exe", "file\\u202etxt.exe"),
        ("a\u2066b\u2069", "a\\u2066b\\u2069"),
        ("sent 1\rpaid 0", "sent 1\npaid 0"),
        ("a\x08\x08b", "a\\u0008\\u0008b"),
        (f"never ended {ESC}]52;c;eA==", "never ended 52;c;eA=="),
        (f"nested {ESC}{ESC}]0;x{BEL}]0;y{BEL}", "nested \\u001b]0;y\\u0007"),
        ("\udce9", "\\udce9"),
        ("\U000e0041", "\\udb40\\udc41"),
    ],
)
def test_no_command_reaches_the_terminal(attack: str, left: str) -> None:
    assert shown(attack) == left


def test_letters_and_colours_pass_and_a_colour_ends_with_its_text() -> None:
    for text in ("größer, 你好 🐬 👩‍👩‍👧 naïve\n\tindented\n", f"{ESC}[31mred{ESC}[0m\n", "windows\nline"):
        assert shown(text) == text
    assert shown(f"{ESC}[8mhidden\n") == f"{ESC}[8mhidden{ESC}[0m\n"
    assert shown("a\r\nb\r\n") == "a\nb\n"
    assert shown("5%\r10%\r\n\x00\u2028", is_terminal=False) == "5%\r10%\r\n\x00\u2028", (
        "a log in a file is what it was"
    )


@given(st.text(alphabet=st.sampled_from("a]\\[;0m2JPc\x1b\x07\x9b\x9d\x9c\x90\u202e\r\n\x00"), max_size=30))
def test_whatever_stands_in_it_only_colours_are_left_of_commands(text: str) -> None:
    clean = shown(text)
    rest = re.sub(r"\x1b\[[0-9;:]*m", "", clean)
    assert not set(rest) & set("\x1b\x07\x9b\x9d\x9c\x90\u202e\r")
    assert not set(shown(text, is_terminal=False)) & set("\x07\x9b\x9d\x9c\x90\u202e")
    assert shown(clean) == clean


@given(st.text())
def test_json_on_standard_output_stays_the_same_value(text: str) -> None:
    written = json.dumps({"text": text}, ensure_ascii=False)
    assert json.loads(shown(written)) == {"text": text}
