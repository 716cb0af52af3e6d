"""What can be said of a data source without opening it: its format's name, the roles of its fields, the syntax of its filter.

The formats are the trainer's own registry, so that a name is right here where it is right there. Refuses to read rows.
"""

from __future__ import annotations

import ast

from launcher.config.key_hints import nearest_key
from launcher.config.problems import Finding
from trainer.run.formats.pairs import chosen_fields
from trainer.run.formats.registry import FORMATS
from trainer.run.settings.data import DataSpec, SourceSpec


def source_findings(data: DataSpec) -> list[Finding]:
    """Wrong names and expressions in `data.sources`, and in validation sets with files of their own."""
    return [finding for where, source in data.inputs for finding in _source(source, where)]


def _source(source: SourceSpec, where: tuple[str | int, ...]) -> list[Finding]:
    found = []

    def report(key: str, message: str) -> None:
        found.append(Finding((*where, key), message))

    names = [entry.name for entry in FORMATS]
    if source.format is not None and source.format not in names:
        near = nearest_key(source.format, names)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(names)}"
        report("format", f"no format is called {source.format!r}; {hint}")
    if source.fields is not None:
        if source.format is not None:
            report("format", "contradicts `fields` of the same source: both say where the turns are; remove one")
        try:
            chosen_fields(source.fields)
        except KeyError as error:
            report("fields", str(error.args[0]))
    if source.files and not source.path.startswith("hf://"):
        report(
            "files",
            "chooses files of a hub dataset (hf://owner/name); name other files in `path`, as a file or a pattern",
        )
    if source.filter is not None:
        try:
            ast.parse(source.filter.strip(), mode="eval")
        except (SyntaxError, ValueError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            report("filter", f"{source.filter!r} is no expression: {reason}; correct it")
    return found
