"""A picture of a package as a house: its rooms (folders and modules at its top), who imports whom, and the floors that follow.

    python -m tests.support.rooms [PACKAGE ...]      launcher and trainer where none is named

A room stands one floor above the highest room that it imports. An import within a function counts, one for types does not.
"""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All of the module's syntax, read once for all who ask. Not to be changed."""
    return tuple(ast.walk(tree_of(path)))


@functools.cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """Every module that `path` imports, anywhere in it, with its line; `from a import b` is a and a.b."""
    found: list[tuple[str, int]] = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found += [(name, node.lineno) for name in names]
    return tuple(found)


@functools.cache
def imports_when_run(path: Path) -> tuple[tuple[str, int], ...]:
    """As `imports`, without those under `if TYPE_CHECKING`."""
    for_types = {
        line
        for node in nodes_of(path)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return tuple((name, line) for name, line in imports(path) if line not in for_types)


def modules_of(package: str) -> dict[str, Path]:
    """Dotted name -> file, of every module below the package that holds code."""
    paths = sorted((ROOT / package.replace(".", "/")).rglob("*.py"))
    return {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path
        for path in paths
        if path.name != "__init__.py"
    }


def rooms_of(package: str) -> dict[str, set[str]]:
    """Room -> the rooms of the same package that it imports."""
    modules, depth = modules_of(package), package.count(".") + 1
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        room = module.split(".")[depth]
        others = {name.split(".")[depth] for name, _ in imports_when_run(path) if name in modules}
        graph.setdefault(room, set()).update(others - {room})
    return graph


def floors_of(graph: dict[str, set[str]]) -> list[list[str]]:
    """From the ground up. ValueError names the rooms of a circle."""
    left, floors = dict(graph), list[list[str]]()
    while left:
        ready = sorted(room for room, others in left.items() if not others & left.keys())
        if not ready:
            raise ValueError(f"these import each other in a circle: {', '.join(sorted(left))}")
        floors.append(ready)
        for room in ready:
            del left[room]
    return floors


def main() -> None:
    for package in sys.argv[1:] or ("launcher", "trainer"):
        graph = rooms_of(package)
        print(f"{package}: {len(graph)} rooms")
        floors = floors_of(graph)
        for number, floor in reversed(list(enumerate(floors))):
            for room in floor:
                print(f"  {number}  {room:<12}{'-> ' if graph[room] else ''}{', '.join(sorted(graph[room]))}")


if __name__ == "__main__":
    main()
