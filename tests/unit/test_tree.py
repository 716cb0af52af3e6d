"""The tree as git has it: what would shadow a package, pack too much, or speak of somewhere else.

The forbidden phrases are put together here, so that this file does not hold them itself.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.rooms import nodes_of

ROOT = Path(__file__).parents[2]
LARGEST_FILE_BYTES = 1 << 20
LONGEST_MODULE_LINES = 400


@functools.cache
def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("git: this is no checkout, so what is tracked is not known")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@functools.cache
def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:1024]:
            found.append((path.relative_to(ROOT), data.decode("utf-8")))
    return found


def test_no_python_under_sky_shadows_skypilot() -> None:
    assert [
        path for path in (ROOT / "sky").rglob("*") if path.suffix in (".py", ".pyi") or path.name == "py.typed"
    ] == []


def test_only_launcher_and_trainer_are_packed() -> None:
    """`sky/`, `tests/` or `build/` in a wheel would land in everyone's site-packages."""
    from setuptools import find_packages

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert settings["namespaces"] is False
    packages = find_packages(str(ROOT), include=settings["include"])
    assert {name.split(".")[0] for name in packages} == {"launcher", "trainer"}
    folders = {path.parent for package in ("launcher", "trainer") for path in (ROOT / package).rglob("*.py")}
    missing = {".".join(folder.relative_to(ROOT).parts) for folder in folders} - set(packages)
    assert missing == set(), "a folder of modules without __init__.py would be left out of the wheel"


@pytest.mark.parametrize(
    "phrase",
    [r"(^|[^A-Za-z0-9_.-])/" + "(work|farm)" + "/", r"\.\./" + "shared", "iss" + r"ue #?[0-9]+", "TO" + "DO", "NotImplemented" + "Error"],
)  # fmt: skip
def test_nothing_speaks_of_what_is_outside_the_project_or_unfinished(phrase: str) -> None:
    found = []
    for path, text in texts():
        if path.parts[0] == ".ci":  # the one place that may know where samples lie
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(phrase, line):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    assert found == []


def test_no_large_file_is_tracked() -> None:
    assert [str(path) for path in tracked() if path.stat().st_size > LARGEST_FILE_BYTES] == []


def test_every_package_that_an_extra_may_bring_has_a_version_that_was_tested() -> None:
    """One without is the newest on the day of the launch, on a node that is paid for."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {re.split(r"[\[<>=]", one)[0] for extra in extras.values() for one in extra if "==" not in one}
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    plain = [{name.lower().replace("_", "-") for name in names} for names in (wanted, pinned)]
    assert plain[0] - plain[1] == set()


def test_every_module_can_be_read_at_one_sitting() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked() if path.suffix == ".py"
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE_LINES} == {}


def test_what_is_allowed_to_be_unused_is_there_and_unused() -> None:
    """Else the list of exceptions grows for ever, and hides the next dead thing of the same name."""
    from vulture import Vulture

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["vulture"]
    scan = Vulture(ignore_decorators=settings["ignore_decorators"])
    scan.scavenge([str(ROOT / path) for path in settings["paths"]])
    unused = {item.name for item in scan.get_unused_code(min_confidence=60)}
    assert set(settings["ignore_names"]) - unused == set()


def test_a_function_of_many_parameters_says_why() -> None:
    """More than six are handed on in the wrong order one day. The command line's own functions have one for each option."""
    found = []
    for path in tracked():
        name = path.relative_to(ROOT)
        if (
            name.suffix != ".py"
            or name.parts[0] not in ("launcher", "trainer")
            or name.parts[:2] == ("launcher", "cli")
        ):
            continue
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                count = len([one for one in arguments if one.arg not in ("self", "cls")])
                if count > 6 and "Many parameters: " not in (ast.get_docstring(node) or ""):
                    found.append(f"{name}:{node.lineno} {node.name} has {count}")
    assert found == []
