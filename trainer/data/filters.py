"""Filter expressions of a source, evaluated safely on each row (simpleeval: no attribute of an object, no import, no call
but the functions named here)."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import simpleeval

from trainer.run.bounded import TookTooLong, cpu_seconds
from trainer.run.exits import BadInput
from trainer.run.formats.conversation import BadRow, Reason

FUNCTIONS = {"len": len, "lower": str.lower, "startswith": str.startswith, "endswith": str.endswith, "str": str,
             "int": int, "float": float, "abs": abs, "min": min, "max": max}  # fmt: skip


_CHANGING = frozenset(
    [
        "append",
        "clear",
        "extend",
        "insert",
        "pop",
        "popitem",
        "remove",
        "reverse",
        "setdefault",
        "sort",
        "update",
        "add",
        "discard",
        "__setitem__",
        "__delitem__",
    ]
)
"""Methods of lists and groups that change them."""
FILTER_CPU_S = 10.0
_LONGEST = 2000
"""Characters of an expression."""


class Filter:
    """`keep(row)` is whether the expression is true of a row. The names in it are columns."""

    def __init__(self, expression: str, where: str) -> None:
        self._expression = expression
        self._evaluator = simpleeval.EvalWithCompoundTypes(functions=FUNCTIONS)
        if len(expression) > _LONGEST:
            raise BadInput(f"{where}: the filter has {len(expression):,} characters; at most {_LONGEST:,} are read")
        try:
            self._parsed = simpleeval.SimpleEval.parse(expression)
            tree = ast.parse(expression.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError, simpleeval.InvalidExpression) as error:
            raise BadInput(f"{where}: filter `{expression}` is not an expression: {error}") from error
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        unknown = sorted(called - FUNCTIONS.keys())
        if unknown:
            raise BadInput(f"{where}: filter `{expression}` calls {unknown[0]}; there are {', '.join(FUNCTIONS)}")
        changing = sorted(
            {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in _CHANGING}
        )
        if changing:
            raise BadInput(
                f"{where}: filter `{expression}` uses .{changing[0]}, which would change the row; a filter only looks"
            )
        self.columns = (
            {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - called - {"None", "True", "False"}
        )

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Raises BadRow where a column is missing or the expression fails on this row."""
        self._evaluator.names = row
        try:
            with cpu_seconds(FILTER_CPU_S):
                return bool(self._evaluator.eval(self._expression, previously_parsed=self._parsed))
        except TookTooLong:
            raise BadInput(
                f"filter `{self._expression}` had not ended a row after {FILTER_CPU_S:.0f} s; write a simpler one"
            ) from None
        except simpleeval.NameNotDefined as error:
            raise BadRow(Reason.FILTER, f"there is no column '{error.name}'") from error
        except (
            simpleeval.InvalidExpression,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            raise BadRow(Reason.FILTER, f"`{self._expression}`: {error}") from error
