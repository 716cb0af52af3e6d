"""YAML 1.2 as plain data, together with the line that every value came from.

Owns how a scalar is read (the 1.2 core schema: `5e-6` is a number; `on`, `off`, `yes`, `no` and dates are text), duplicate
keys, aliases and merge keys. Refuses to know what any key means. PyYAML's C parser was chosen by measurement: the
118-pattern reference job takes 1.5 ms, 34 ms with ruamel.yaml, whose import also costs more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Where = tuple[str | int, ...]
"""A value's place: `("data", "sources", 0, "path")`."""

MAX_VALUES = 200_000
"""More than this after aliases are expanded is an attack or an accident, not a job."""


_LONGEST_NUMBER = 60


@dataclass
class Document:
    """What a file says. `faults` holds (line, where, message) of what YAML itself forbids or dolphin does not read."""

    data: Any = None
    lines: dict[Where, int] = field(default_factory=dict)
    """1-based line of each key and list item."""
    blank: set[Where] = field(default_factory=set)
    """Keys with nothing after the colon (`key:`), unlike an explicit null."""
    faults: list[tuple[int, Where, str]] = field(default_factory=list)

    def line(self, where: Where) -> int:
        """Line of the value, or of the nearest group around it that the file states."""
        while where:
            if where in self.lines:
                return self.lines[where]
            where = where[:-1]
        return 1


def read_yaml(text: str) -> Document:
    """Parse one document. A syntax error becomes the only fault, and `data` is None."""
    loader = _Loader(text)
    try:
        node = loader.get_node() if loader.check_node() else None
        second = loader.get_node() if node is not None and loader.check_node() else None
    except yaml.MarkedYAMLError as error:
        return Document(faults=[_syntax_fault(error)])
    except RecursionError:
        return Document(faults=[(1, (), "is nested too deeply; a job has five levels")])
    except yaml.YAMLError as error:
        return Document(faults=[(_line_of_position(text, error), (), f"is not YAML: {_reason(error)}")])
    finally:
        loader.dispose()
    builder = _Builder()
    document = builder.document
    if node is not None:
        try:
            document.data = builder.build(node, ())
        except RecursionError:
            return Document(faults=[(1, (), "is nested too deeply; a job has five levels")])
    if second is not None:
        line = second.start_mark.line + 1
        document.faults.append((line, (), "a second document begins here; dolphin reads one per file: remove it"))
    return document


def read_scalar(text: str) -> Any:
    """The value after `--set key=`, read as YAML. Raises ValueError where it is not."""
    document = read_yaml(text)
    if document.faults:
        raise ValueError(document.faults[0][2])
    return document.data


def write_yaml(data: Any) -> str:
    """`data` as YAML that `read_yaml` and older readers (YAML 1.1) take for the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def inline_yaml(value: Any) -> str:
    """`value` on one line, as it may stand behind a key."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(inline_yaml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inline_yaml(item)}" for key, item in value.items()) + "}"
    return write_yaml(value).removesuffix("\n").removesuffix("\n...")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own protocol: replaced per class)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # list items are indented under their key

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """In double quotes, escaped, where PyYAML would write a rare line separator as it is and lose it."""
    style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

for _tag, _expression, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):  # fmt: skip
    for _reader in (_Loader, _Dumper):  # the writer quotes what either version of YAML would read as something else
        _reader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_expression})$"), list(_first))


class _Builder:
    def __init__(self) -> None:
        self.document = Document()
        self.open: set[int] = set()
        self.count = 0

    def fault(self, node: yaml.Node, where: Where, message: str) -> None:
        self.document.faults.append((node.start_mark.line + 1, where, message))

    def build(self, node: yaml.Node, where: Where) -> Any:
        self.count += 1
        if id(node) in self.open:
            self.fault(node, where, "an alias that contains itself; write the values out")
            return None
        if self.count > MAX_VALUES:
            if self.count == MAX_VALUES + 1:
                self.fault(
                    node, where, f"more than {MAX_VALUES:,} values once aliases are expanded; write a smaller file"
                )
            return None
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, where)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.item(child, (*where, index)) for index, child in enumerate(node.value)]
            return self.mapping(node, where)
        finally:
            self.open.discard(id(node))

    def item(self, node: yaml.Node, where: Where) -> Any:
        self.document.lines[where] = node.start_mark.line + 1
        return self.build(node, where)

    def mapping(self, node: yaml.Node, where: Where) -> dict[str, Any]:
        out: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.fault(key_node, where, "a key must be a plain word, not a list or a group")
                continue
            key = str(key_node.value)
            if key in first_line:
                message = f"duplicate key: also on line {first_line[key]}; keep one of them"
                self.document.faults.append((line, (*where, key), message))
                continue
            first_line[key] = line
            self.document.lines[(*where, key)] = line
            out[key] = self.build(value_node, (*where, key))
            if value_node.tag == "tag:yaml.org,2002:null" and value_node.value == "":
                self.document.blank.add((*where, key))
        for source in merged:
            if not isinstance(source, yaml.MappingNode):
                self.fault(source, where, "`<<` takes a group (or a list of groups)")
                continue
            for key, value in self.mapping_to_merge(source, where, set(out)):
                out[key] = value
        return out

    def mapping_to_merge(self, node: yaml.MappingNode, where: Where, own: set[str]) -> Iterator[tuple[str, Any]]:
        """Pairs of a `<<` group that the group itself does not state."""
        self.count += 1
        if id(node) in self.open:
            self.fault(node, where, "a group that merges itself; write the values out")
            return
        if self.count > MAX_VALUES:
            if self.count == MAX_VALUES + 1:
                self.fault(
                    node, where, f"more than {MAX_VALUES:,} values once merges are expanded; write a smaller file"
                )
            return
        kept = [(k, v) for k, v in node.value if not (isinstance(k, yaml.ScalarNode) and k.value in own)]
        self.open.add(id(node))
        try:
            yield from self.mapping(yaml.MappingNode(node.tag, kept, node.start_mark, node.end_mark), where).items()
        finally:
            self.open.discard(id(node))

    def scalar(self, node: yaml.ScalarNode, where: Where) -> Any:
        kind, text = node.tag.rpartition(":")[2], node.value
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind in ("int", "float") and len(text) > _LONGEST_NUMBER:
                self.fault(node, where, f"{text[:20]}... is a number of {len(text):,} characters; put text in quotes")
                return None
            if kind == "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "float":
                return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
        except (ValueError, KeyError):
            self.fault(node, where, f"{text[:60]!r} is not what its tag !!{kind} says")
            return None
        if kind in ("str", "merge"):
            return text
        self.fault(node, where, f"the tag {node.tag} is not read here; write the plain value")
        return None


def _syntax_fault(error: yaml.MarkedYAMLError) -> tuple[int, Where, str]:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    return line, (), f"is not YAML: {_reason(error)}"


def _reason(error: yaml.YAMLError) -> str:
    """The parser's words, without the excerpt of the file that it may quote."""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read")
    context = getattr(error, "context", None)
    if "'\\t'" in problem or "cannot start any token" in problem:
        problem += " (is there a tab, or a special character that needs quotes?)"
    elif "mapping values are not allowed" in problem:
        problem += " (a colon in a value needs quotes, or the indentation is off)"
    return f"{problem}{f', {context}' if context else ''}; correct this line"


def _line_of_position(text: str, error: yaml.YAMLError) -> int:
    position = getattr(error, "position", 0) or 0
    return text.count("\n", 0, position) + 1
