"""A message that tells a person to pass an option there is not: every `--word` that dolphin says is one that it takes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from launcher.cli import app
from tests.support.rooms import nodes_of

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
QUOTED = re.compile(r"`([^`]*)`")
OTHER_PROGRAMS = ("docker", "hf", "sky", "pip", "python", "apt-get", "nvidia-smi", "git")
"""What stands in backticks and begins so is for another program."""


def options_by_command() -> dict[str, set[str]]:
    """`spectrum scan` -> its options, with those of `dolphin` itself."""
    found: dict[str, set[str]] = {}

    def walk(command: object, path: tuple[str, ...]) -> None:
        found[" ".join(path)] = {option for parameter in command.params for option in getattr(parameter, "opts", [])}  # type: ignore[attr-defined]
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


KNOWN = options_by_command()
ALL = {option for options in KNOWN.values() for option in options} | {"--help"}


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a module with more than a word, f-strings as one text: an argument for a process is one word."""
    nodes = nodes_of(path)
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        if " " in text:
            yield node.lineno, text


def unknown_options(text: str) -> list[str]:
    """Options in a text that no command takes, or not the command that is named beside it."""
    wrong = []
    for quoted in QUOTED.findall(text):
        words = quoted.split()
        if words and words[0] in OTHER_PROGRAMS:
            continue
        if words[:1] == ["dolphin"]:
            command = " ".join(words[1:3]) if " ".join(words[1:3]) in KNOWN else " ".join(words[1:2])
            wrong += [o for o in OPTION.findall(quoted) if o not in KNOWN.get(command, set()) | KNOWN[""] | {"--help"}]
        else:
            wrong += [option for option in OPTION.findall(quoted) if option not in ALL]
    return wrong + [option for option in OPTION.findall(QUOTED.sub("", text)) if option not in ALL]


def test_every_option_that_a_message_names_exists() -> None:
    sources = sorted((ROOT / "launcher").rglob("*.py"))
    found = [(path, line, text) for path in sources for line, text in messages(path) if OPTION.search(text)]
    assert len(found) > 20, "the messages are not found any more"
    wrong = [f"{path.relative_to(ROOT)}:{line}: {unknown}" for path, line, text in found
             if (unknown := unknown_options(text))]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("launch with `--no-plan`, or not", ["--no-plan"]),
        ("pass --fast to go on", ["--fast"]),
        ("`dolphin logs X --tail 5` and `docker run --rm`", []),
        ("`dolphin down X --tail 5` is no such thing", ["--tail"]),
        ("`dolphin spectrum scan M --device cpu`; --on sky", []),
    ],
)
def test_the_finder_of_options_finds_them(text: str, wrong: list[str]) -> None:
    assert unknown_options(text) == wrong
