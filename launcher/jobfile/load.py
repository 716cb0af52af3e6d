"""From a file and `--set` overrides to a checked JobSpec: read, override, validate, and report everything at once.

Owns the order of the checks and the place (file and line, or `--set`) of every finding. The checks themselves are elsewhere:
YAML in `config.yaml_lines`, single settings in the models, contradictions in `spec`, files in `paths`, patterns in
`pattern_checks`, axolotl's keys in `axolotl`.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from launcher.config.key_hints import all_keys, groups_in, unknown_key
from launcher.config.problems import Finding, LocatedProblem, SpecErrors, from_pydantic, key_name
from launcher.config.text import read_text
from launcher.config.yaml_lines import Document, Where, read_scalar, read_yaml
from launcher.jobfile.name_checks import name_findings
from launcher.jobfile.paths import resolve_paths
from launcher.jobfile.spec import JobSpec, job_findings

MAX_KEPT_AXOLOTL = 32_000
"""Characters of an axolotl configuration that a run keeps: train.json holds it, and travels with every start."""
OWN_KEYS = "x-"
"""Keys at the top of a file that begin so are the writer's own: YAML anchors to be used below, notes."""
RIVALS = (
    ("train.max_steps", "train.epochs"),
    ("train.global_batch", "train.accumulation"),
    ("train.warmup_steps", "train.warmup_ratio"),
    ("data.validation_count", "data.validation_fraction"),
    ("data.validation", "data.validation_fraction"),
    ("data.validation", "data.validation_count"),
)
"""Settings of which a job states one. `--set` of the one takes the place of the other in the file."""


@dataclass
class Source:
    """A job as data, with the way back from a place in it to the file or the command line."""

    file: str
    document: Document
    data: Any
    from_command_line: set[Where] = field(default_factory=set)
    origins: dict[Where, Where] = field(default_factory=dict)
    """For a converted file: place in the job -> key in the file."""

    def locate(self, finding: Finding) -> LocatedProblem:
        where = finding.where
        for length in range(len(where), 0, -1):
            if where[:length] in self.from_command_line:
                return LocatedProblem("--set", None, key_name(where), finding.message)
        for length in range(len(where), 0, -1):
            if where[:length] in self.origins:
                origin = self.origins[where[:length]]
                message = f"{finding.message} (as {key_name(where)})"
                return LocatedProblem(self.file, self.document.line(origin), key_name(origin), message)
        return LocatedProblem(self.file, self.document.line(where), key_name(where), finding.message)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job in `path` (a job.yaml or an axolotl configuration), `--set` overrides applied, local paths absolute.

    Raises SpecErrors with everything that is wrong, located. Says on standard error what an axolotl file became.
    """
    path = Path(path)
    text = read_text(path)
    document = read_yaml(text)
    if isinstance(document.data, dict):
        document.data = {key: value for key, value in document.data.items() if not key.startswith(OWN_KEYS)}
    source = Source(str(path), document, document.data)
    located = [LocatedProblem(source.file, line, key_name(where), message) for line, where, message in document.faults]
    if document.data is None and not located:
        located.append(LocatedProblem(source.file, 1, "", "is empty; `dolphin init` writes one to start from"))
    elif document.data is not None and not isinstance(document.data, dict):
        kind = "a list" if isinstance(document.data, list) else "a single value"
        located.append(LocatedProblem(source.file, 1, "", f"holds {kind}; a job is lines of `key: value`"))
    if not isinstance(document.data, dict):
        raise SpecErrors(located)
    if is_axolotl(document.data):
        source = _converted(source, located, overrides)
    findings = override(source, overrides)
    if not source.origins:
        findings += _blanks(source)
    job, invalid = validate(source.data)
    findings += invalid
    if job is not None:
        findings += job_findings(job)
        findings += name_findings(job, path.resolve().parent)
        if any(source.format or source.fields or source.filter or source.files for _, source in job.data.inputs):
            from launcher.jobfile.source_checks import source_findings

            findings += source_findings(job.data)
    data, missing = resolve_paths(source.data, path.resolve().parent)
    findings += [f for f in missing if not any(f.where == other.where for other in findings)]
    if job is not None and not missing:
        job = JobSpec.model_validate_json(json.dumps(data), strict=True)
        from launcher.jobfile.model_checks import model_findings
        from launcher.jobfile.pattern_checks import pattern_findings

        findings += model_findings(job) or pattern_findings(job)
        if job.evaluate.asks:
            from launcher.jobfile.evaluate_checks import evaluate_findings

            findings += evaluate_findings(job)
    located += [source.locate(finding) for finding in findings]
    if located or job is None:
        raise SpecErrors(sorted(dict.fromkeys(located), key=lambda p: (p.line is None, p.line or 0)))
    return job


def axolotl_text(path: str | Path) -> str:
    """The file's text where it is an axolotl configuration that `load_job` takes; empty where it is a job, or too long to be kept."""
    text = read_text(Path(path))
    data = read_yaml(text).data
    return text if isinstance(data, dict) and is_axolotl(data) and len(text) <= MAX_KEPT_AXOLOTL else ""


def is_axolotl(data: dict[str, Any]) -> bool:
    """Whether these are axolotl's keys rather than a job's."""
    return "model" not in data and "data" not in data and ("base_model" in data or "datasets" in data)


def validate(data: dict[str, Any]) -> tuple[JobSpec | None, list[Finding]]:
    """Check each setting by itself. A job only where there is nothing to find."""
    findings = _not_finite(data, ())
    try:
        job = JobSpec.model_validate_json(json.dumps(data), strict=True)
        return (None if findings else job), findings
    except ValidationError as error:
        errors = error.errors(include_url=False)
    known = all_keys(JobSpec)
    for finding in from_pydantic([e for e in errors if e["type"] != "finite_number"], data):
        findings.append(finding)
    first = {finding.where: finding for finding in reversed(findings)}  # what else is wrong with a value can wait
    return None, [_explained(finding, known) for finding in findings if first[finding.where] is finding]


def _explained(finding: Finding, known: list[str]) -> Finding:
    """With what only the whole of the settings can tell: the nearest right key, the explanation of a form."""
    where, message = finding
    if message.startswith("extra inputs"):
        return Finding(where, unknown_key(_group(where), str(where[-1]), known))
    if message.startswith("does not have the right form"):
        from launcher.jobfile.field_docs import explanations

        told = {name: text for group in _groups_at(where) for name, text in explanations(group).items()}
        return Finding(where, f"{message}: {told[where[-1]]}" if where[-1] in told else message)
    return finding


def _group(where: Where) -> str:
    return ".".join(str(part) for part in where[:-1] if not isinstance(part, int))


def _groups_at(where: Where) -> list[type[BaseModel]]:
    """The groups (models) that may hold the key `where`; none where a group on the way is unknown."""
    groups: list[type[BaseModel]] = [JobSpec]
    for part in where[:-1]:
        if isinstance(part, str):
            fields = _fields(groups)
            groups = groups_in(fields[part].annotation) if part in fields else []
    return groups


def _fields(groups: list[type[BaseModel]]) -> dict[str, FieldInfo]:
    return {name: info for group in groups for name, info in group.model_fields.items()}


def _not_finite(value: Any, where: Where) -> list[Finding]:
    if isinstance(value, dict):
        return [f for key, inner in value.items() for f in _not_finite(inner, (*where, key))]
    if isinstance(value, list):
        return [f for index, inner in enumerate(value) for f in _not_finite(inner, (*where, index))]
    if isinstance(value, float) and not math.isfinite(value):
        return [Finding(where, "must be a finite number")]
    return []


def _blanks(source: Source) -> list[Finding]:
    """`key:` with nothing after it: an empty group is its defaults, an empty setting says nothing and is an error."""
    findings = []
    for where in sorted(source.document.blank, key=str):
        fields = _fields(_groups_at(where))
        key = str(where[-1])
        parent = _at(source.data, where[:-1])
        if not isinstance(parent, dict) or parent.get(key, 0) is not None or where in source.from_command_line:
            continue
        if key in fields and groups_in(fields[key].annotation) == [fields[key].annotation]:
            parent[key] = {}
        elif key in fields and key in ("env", "secrets") and len(where) == 1:
            parent[key] = {} if key == "env" else []
        else:
            del parent[key]
            known = f"unknown key: {key}" if key not in fields else "has no value; give one, or remove the line"
            findings.append(Finding(where, known))
    return findings


def _at(data: Any, where: Where) -> Any:
    for part in where:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def override(source: Source, overrides: Sequence[str]) -> list[Finding]:
    """Set each `key=value` in the data of `source`; what is wrong with them."""
    findings = []
    stated = {text.partition("=")[0].strip() for text in overrides}
    for text in overrides:
        key, separator, value_text = text.partition("=")
        where = parse_key(key)
        source.from_command_line.add(where)
        if not separator or not where:
            findings.append(Finding(where, "write it as key=value, for example train.learning_rate=1e-5"))
            continue
        try:
            value = read_scalar(value_text)
        except ValueError as error:
            findings.append(Finding(where, str(error)))
            continue
        for one, other in (*RIVALS, *((b, a) for a, b in RIVALS)):
            group, _, name = other.partition(".")
            if key_name(where) == one and other not in stated and isinstance(source.data.get(group), dict):
                source.data[group].pop(name, None)
        reason = _set(source.data, where, value)
        if reason:
            findings.append(Finding(where, reason))
    return findings


def parse_key(text: str) -> Where:
    """`data.sources[0].path` or `data.sources.0.path` -> ("data", "sources", 0, "path")."""
    parts = re.findall(r"[^.\[\]]+", text.strip())
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _set(data: Any, where: Where, value: Any) -> str | None:
    """Put `value` there, making the groups on the way. Returns what is wrong, or None."""
    for depth, part in enumerate(where):
        last = depth == len(where) - 1
        if isinstance(data, list) and isinstance(part, int):
            if part >= len(data):
                return f"there are {len(data)} entries; the first is 0"
        elif isinstance(data, dict) and isinstance(part, str):
            if not last and data.get(part) is None:
                data[part] = {}
        else:
            return f"{key_name(where[:depth])} is not a group that holds {part!r}"
        if last:
            data[part] = value
        else:
            data = data[part]
    return None


def _converted(source: Source, located: list[LocatedProblem], overrides: Sequence[str]) -> Source:
    """The same source as a job; says on standard error what became of its keys. An override settles the error it answers."""
    from launcher.jobfile.axolotl.convert import convert

    conversion = convert(source.data, Path(source.file).resolve().parent)
    located += [
        LocatedProblem(source.file, source.document.line(f.where), key_name(f.where), f.message)
        for f in conversion.unanswered(overrides)
    ]
    print(conversion.summary(source.file), file=sys.stderr)
    return Source(source.file, source.document, conversion.job, origins=conversion.origins)
