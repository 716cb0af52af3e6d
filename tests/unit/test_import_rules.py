"""Who may import whom, read from the source, so that a lazy import counts too.

The disasters: a laptop that must install torch to read a log; a trainer image that drags the launcher along; SkyPilot
loaded (seconds) by a command that needs no cloud.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NODE_STACK = ("torch", "transformers", "deepspeed", "datasets", "safetensors", "numpy", "tokenizers")
ONLY_IMPORTERS = {"sky": "launcher/backends/sky/client.py", "docker": "launcher/backends/docker"}
"""Prefix of the only files that may import a backend's library."""


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that `path` imports, anywhere in it, with its line; `from a import b` is a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            yield node.module or "", node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no source under {package}: the rule would hold for nothing"
    return found


def offenders(package: str, is_forbidden) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(package)
        for name, line in imports(path)
        if is_forbidden(name, str(path.relative_to(ROOT)))
    ]


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_launcher_never_needs_the_training_stack() -> None:
    assert offenders("launcher", lambda name, _: any(is_within(name, package) for package in NODE_STACK)) == []


def test_launcher_reaches_no_trainer_module_that_needs_the_training_stack() -> None:
    """A module of the trainer is fit for the laptop where neither it nor anything it imports at its top needs torch."""
    assert offenders("launcher", lambda name, _: is_within(name, "trainer") and needs_node_stack(name)) == []


def needs_node_stack(name: str, seen: frozenset[str] = frozenset()) -> bool:
    path = ROOT / (name.replace(".", "/") + ".py")
    if name in seen or not path.exists():
        return False
    for top, _ in top_level_imports(path):
        if any(is_within(top, package) for package in NODE_STACK) or needs_node_stack(top, seen | {name}):
            return True
    return False


def top_level_imports(path: Path) -> Iterator[tuple[str, int]]:
    """What importing `path` loads: its imports outside functions and outside `if TYPE_CHECKING`."""
    pending: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    pending.append(child)


def test_trainer_never_needs_the_launcher() -> None:
    forbidden = ("launcher", "typer", "rich", "sky", "docker")
    assert offenders("trainer", lambda name, _: any(is_within(name, package) for package in forbidden)) == []


@pytest.mark.parametrize("library", sorted(ONLY_IMPORTERS))
def test_only_its_backend_loads_a_backends_library(library: str) -> None:
    home = ONLY_IMPORTERS[library]
    assert offenders("launcher", lambda name, path: is_within(name, library) and not path.startswith(home)) == []


def test_command_line_loads_only_typer_at_its_top() -> None:
    standard = sys.stdlib_module_names
    loaded = {name.split(".")[0] for name, _ in top_level_imports(ROOT / "launcher" / "cli.py")}
    assert loaded - standard - {"__future__"} == {"typer"}


def test_the_reader_of_imports_sees_lazy_and_nested_ones(tmp_path: Path) -> None:
    """The rules above would hold for anything if this failed."""
    path = tmp_path / "module.py"
    path.write_text("import a.b\ndef f():\n    from c.d import e\n    if f:\n        import g\n")
    assert {name for name, _ in imports(path)} == {"a.b", "c.d", "c.d.e", "g"}
    assert {name for name, _ in top_level_imports(path)} == {"a.b"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """In a circle nothing can be read, tested or moved alone. An import within a function counts, one for types does not."""
    graph = {
        module: {name for name, _ in imports_when_run(path) if (ROOT / f"{name.replace('.', '/')}.py").exists()}
        for package in ("launcher", "trainer")
        for path in sources(package)
        for module in [str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")]
    }
    assert sum(map(len, graph.values())) > 200, "the graph has lost its edges"
    left = dict(graph)
    while ends := [module for module, others in left.items() if not others & left.keys()]:
        for module in ends:
            del left[module]
    assert sorted(left) == []


def imports_when_run(path: Path) -> Iterator[tuple[str, int]]:
    """As `imports`, without those under `if TYPE_CHECKING`."""
    for_types = {
        line
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return ((name, line) for name, line in imports(path) if line not in for_types)
