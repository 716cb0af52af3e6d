"""What is wrong with a job file: one located problem each, all of them at once.

Owns how a problem is printed and how pydantic's findings are said in dolphin's words. Refuses to know files and YAML.
A value is never quoted where it may be a secret (`env`, `secrets`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from launcher.config.key_hints import nearest_key
from launcher.config.yaml_lines import Where

CONFIDENTIAL = ("env", "secrets", "notify")
"""Groups whose values are never printed."""


class LocatedProblem(NamedTuple):
    """`file:line: key: message`; `line` is None for what the command line says (`file` is then `--set`)."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        if self.line is None:
            return f"{self.file} {self.key}: {self.message}"
        return (
            f"{self.file}:{self.line}: {self.key}: {self.message}"
            if self.key
            else f"{self.file}:{self.line}: {self.message}"
        )


class SpecErrors(Exception):
    """Everything that is wrong with a job; `str()` is a line for each."""

    def __init__(self, problems: Sequence[LocatedProblem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Finding(NamedTuple):
    """A problem that has a place in the data but no file and line yet."""

    where: Where
    message: str


def key_name(where: Where) -> str:
    """`("data", "sources", 0, "path")` -> `data.sources[0].path`."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def from_pydantic(errors: Iterable[Any], data: Any) -> list[Finding]:
    """Findings of one failed validation of `data`, in dolphin's words, one for each place and cause.

    Where a setting may have one of several shapes, pydantic reports every shape that did not fit; here the shape that
    the data chose speaks alone, and where none fits, one finding names them all.
    """
    plain: list[Finding] = []
    unions: dict[Where, dict[str, list[tuple[Where, Any]]]] = {}
    for error in errors:
        where, union_at, branch = _real_place(error, data)
        if union_at is None:
            plain.append(Finding(where, _say(error, where)))
        else:
            unions.setdefault(union_at, {}).setdefault(branch, []).append((where, error))
    for union_at, branches in unions.items():
        deep = [found for found in branches.values() if all(where != union_at for where, _ in found)]
        if deep:
            plain += [Finding(where, _say(error, where)) for where, error in min(deep, key=len)]
        else:
            ranged = [e for found in branches.values() for _, e in found if e["type"] not in _SHAPES]
            if ranged and all(e["type"] in _SHAPES or e in ranged for f in branches.values() for _, e in f):
                plain.append(Finding(union_at, _say(ranged[0], union_at)))
                continue
            expected = [_expected(error) for found in branches.values() for where, error in found if where == union_at]
            plain.append(Finding(union_at, _must_be(" or ".join(dict.fromkeys(expected)), branches, union_at)))
    inside = {finding.where[:length] for finding in plain for length in range(len(finding.where))}
    return [f for f in plain if not (f.message.startswith("needs at least") and f.where in inside)]


def _real_place(error: Any, data: Any) -> tuple[Where, Where | None, str]:
    """Place in the data, without the names of union branches; the place of the union and the branch, if there is one."""
    where: list[str | int] = []
    union_at: Where | None = None
    branch = ""
    location = error["loc"]
    for index, part in enumerate(location):
        last = index == len(location) - 1
        here = (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int))
        if here:
            data = data[part] if isinstance(data, dict) or part < len(data) else None
            where.append(part)
        elif last and error["type"] in ("missing", "extra_forbidden"):
            where.append(part)
        elif part != "[key]" and union_at is None:
            union_at, branch = tuple(where), str(part)
    return tuple(where), union_at, branch


_SHAPES: dict[str, str] = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a group of `name: value` lines",
    "model_type": "a group of settings",
    "model_attributes_type": "a group of settings",
    "literal_error": "one of {expected}",
}

_LIMITS: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda c: f"must be greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be {c['ge']:g} or more",
    "less_than": lambda c: f"must be less than {c['lt']:g}",
    "less_than_equal": lambda c: f"must be {c['le']:g} or less",
    "too_short": lambda c: f"needs at least {c['min_length']} {'entry' if c['min_length'] == 1 else 'entries'}",
    "too_long": lambda c: f"takes at most {c['max_length']} {'entry' if c['max_length'] == 1 else 'entries'}",
    "string_too_short": lambda c: "must not be empty",
}


def _expected(error: Any) -> str:
    text: str = _SHAPES.get(error["type"], error["msg"])
    return text.format(expected=error.get("ctx", {}).get("expected", "")).replace("one of 'auto'", "auto")


def _must_be(expected: str, branches: dict[str, Any], where: Where) -> str:
    value = next(error["input"] for found in branches.values() for _, error in found)
    return f"must be {expected}{_not(value, where)}"


def _say(error: Any, where: Where) -> str:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "missing":
        return "is missing; add it"
    if kind in _LIMITS:
        return f"{_LIMITS[kind](context)}{_not(value, where) if not isinstance(value, list) else ''}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", error["msg"]))
    if kind == "string_pattern_mismatch":
        return f"does not have the right form{_not(value, where)}"
    if kind in _SHAPES:
        return f"must be {_expected(error)}{_not(value, where)}{_advice(kind, value, context, where)}"
    said: str = error["msg"]
    return said[:1].lower() + said[1:]


def _not(value: Any, where: Where) -> str:
    if where and where[0] in CONFIDENTIAL:
        return ""
    if value is None:
        return ", not empty"
    if isinstance(value, bool):
        return f", not {str(value).lower()}"
    if isinstance(value, dict):
        return ", not a group"
    if isinstance(value, (list, tuple)):
        return ", not a list"
    text = repr(value)
    return f", not {text if len(text) <= 60 else text[:57] + '...'}"


_WORDS = {
    "yes": "true",
    "on": "true",
    "y": "true",
    "1": "true",
    "no": "false",
    "off": "false",
    "n": "false",
    "0": "false",
}


def _advice(kind: str, value: Any, context: dict[str, Any], where: Where) -> str:
    """What to write instead, where that is plain."""
    if where and where[0] in CONFIDENTIAL:
        return "; put it in quotes" if kind == "string_type" else ""
    if kind == "bool_type":
        word = {"true": "true", "false": "false"}.get(str(value).lower(), _WORDS.get(str(value).lower()))
        return f"; write {word}" if word else ""
    if kind == "string_type" and isinstance(value, (int, float)):
        return "; put it in quotes"
    if kind in ("int_type", "int_from_float") and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        try:
            number = float(value.replace("_", "").replace(",", ""))
        except ValueError:
            return ""
        return f"; write {int(number) if kind == 'int_type' and number.is_integer() else number:} without quotes or separators"
    if kind in ("tuple_type", "list_type") and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return f"; write [{value}]"
    if kind == "literal_error" and isinstance(value, str):
        options = [part.strip("' ") for part in context.get("expected", "").replace(" or ", ", ").split(",")]
        if value in options:
            return "; write it without quotes"
        near = nearest_key(value, options)
        return f"; did you mean {near!r}?" if near else ""
    return ""
