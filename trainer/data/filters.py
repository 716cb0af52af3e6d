"""Filter expressions of a source, evaluated safely on each row (simpleeval: no attribute of an object, no import, no call
but the functions named here)."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import simpleeval

from trainer.run.exits import BadInput
from trainer.run.formats.conversation import BadRow, Reason

FUNCTIONS = {"len": len, "lower": str.lower, "startswith": str.startswith, "endswith": str.endswith, "str": str,
             "int": int, "float": float, "abs": abs, "min": min, "max": max}  # fmt: skip


class Filter:
    """`keep(row)` is whether the expression is true of a row. The names in it are columns."""

    def __init__(self, expression: str, where: str) -> None:
        self._expression = expression
        self._evaluator = simpleeval.EvalWithCompoundTypes(functions=FUNCTIONS)
        try:
            self._parsed = simpleeval.SimpleEval.parse(expression)
            tree = ast.parse(expression.strip(), mode="eval")
        except (SyntaxError, simpleeval.InvalidExpression) as error:
            raise BadInput(f"{where}: filter `{expression}` is not an expression: {error}") from error
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        unknown = sorted(called - FUNCTIONS.keys())
        if unknown:
            raise BadInput(f"{where}: filter `{expression}` calls {unknown[0]}; there are {', '.join(FUNCTIONS)}")
        self.columns = (
            {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - called - {"None", "True", "False"}
        )

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Raises BadRow where a column is missing or the expression fails on this row."""
        self._evaluator.names = row
        try:
            return bool(self._evaluator.eval(self._expression, previously_parsed=self._parsed))
        except simpleeval.NameNotDefined as error:
            raise BadRow(Reason.FILTER, f"there is no column '{error.name}'") from error
        except (
            simpleeval.InvalidExpression,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
        ) as error:
            raise BadRow(Reason.FILTER, f"`{self._expression}`: {error}") from error
