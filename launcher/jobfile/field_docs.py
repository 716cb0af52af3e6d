"""The explanation of every setting: the docstring under the field in the models' source.

Owns reading them. Pydantic can attach them to the fields itself, which costs every command 70 ms at start-up; here they are read
only where they are shown (`init`, `schema`, and a message about a value's form).
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools

from pydantic import BaseModel


@functools.cache
def explanations(model: type[BaseModel]) -> dict[str, str]:
    """Field -> explanation, of the fields of `model` and of the models it extends."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, BaseModel) and owner.__module__.partition(".")[0] in ("launcher", "trainer"):
            found.update(_own(owner))
    return found


def _own(model: type[BaseModel]) -> dict[str, str]:
    body = _classes(model.__module__)[model.__name__].body
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
