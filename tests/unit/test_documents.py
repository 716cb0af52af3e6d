"""The documents: a file that has moved, a link into nothing, a command that is no more. A reader tries it, and leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from launcher.cli import app
from tests.unit.test_tree import ROOT, tracked
from trainer.run.formats.registry import FORMATS

DOCUMENTS = sorted(path.relative_to(ROOT) for path in tracked() if path.suffix == ".md")
OF_THE_PROJECT = re.compile(r"`((?:launcher|trainer|tests|docs|examples|sky|bench|\.github)/[\w./-]+)`")


def anchors(path: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_and_names_of_files_lead_somewhere(document: Path) -> None:
    text, lost = (ROOT / document).read_text(), []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if ":" in name:  # of the web
            continue
        path = Path(document if not name else (ROOT / document.parent / name).resolve().relative_to(ROOT))
        if not (ROOT / path).exists() or (anchor and anchor not in anchors(path)):
            lost.append(target)
    named = {name for name in OF_THE_PROJECT.findall(text) if "NAME" not in name}
    lost += [name for name in named if not (ROOT / name).exists()]
    assert lost == []


def commands() -> Iterator[tuple[Path, str]]:
    """Every call of dolphin in a document or a message: a line that shows it, without its comment, or words in a sentence."""
    sources = [path.relative_to(ROOT) for path in tracked() if path.suffix in (".py", ".yaml", ".yml")]
    for document in [
        *DOCUMENTS,
        *(path for path in sources if path.parts[0] in ("launcher", "trainer", "examples", ".github")),
    ]:
        text = (ROOT / document).read_text()
        for line in re.findall(r"^    (dolphin .*)$", text, re.MULTILINE) + re.findall(r"`(dolphin [^`\n]+)`", text):
            yield document, re.split(r"  +#| > ", line)[0].strip()


def test_every_command_that_is_shown_is_there_with_its_options() -> None:
    root = typer.main.get_command(app)
    shown = list(commands())
    assert len(shown) > 20, "the documents show no commands any more, or this test does not see them"
    for document, line in shown:
        command, known = root, {"--help"} | {option for param in root.params for option in param.opts}
        for word in line.split()[1:]:
            if hasattr(command, "commands") and not word.startswith("-"):
                assert word in command.commands, f"{document}: {line}"
                command = command.commands[word]
                known |= {option for param in command.params for option in param.opts}
            elif word.startswith("-") and word != "-":
                assert word in known, f"{document}: {line}"


def test_the_table_of_formats_is_the_one_of_the_registry() -> None:
    rows = re.findall(r"^\| ([a-z-]+) \| (.+) \|$", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)
    assert rows[1:] == [(entry.name, entry.columns) for entry in FORMATS]


def test_what_make_is_asked_for_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [*DOCUMENTS, *(path.relative_to(ROOT) for path in (ROOT / ".github").rglob("*.yml"))]:
        for target in re.findall(
            r"(?:^    |`|run: )(?:\w+=\S+ )*make ([a-z]+)", (ROOT / document).read_text(), re.MULTILINE
        ):
            assert target in targets, f"{document}: make {target}"


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_index_for_language_models_names_every_document_and_nothing_else():
    text = (ROOT / "docs" / "llms.txt").read_text()
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_help_names_every_exit_code():
    from launcher.runs.states import EXIT_CODES

    assert app.info.epilog is not None
    assert set(map(str, EXIT_CODES.values())) <= set(re.findall(r"\d+", app.info.epilog))
