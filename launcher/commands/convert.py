"""Texts about conversions: a job.yaml made from an axolotl file, and the table of all keys for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.config.problems import LocatedProblem, SpecErrors, key_name
from launcher.config.text import read_text
from launcher.config.yaml_lines import read_yaml, write_yaml
from launcher.jobfile.axolotl.account import Conversion
from launcher.jobfile.axolotl.convert import convert
from launcher.jobfile.axolotl.keys import DATASET_ERRORS, DATASET_MAPPED, DATASET_NO_EFFECT, ERRORS, MAPPED, NO_EFFECT
from launcher.jobfile.load import Source, override, validate
from launcher.jobfile.paths import resolve_paths


def converted_text(path: Path, folder: Path, overrides: Sequence[str] = ()) -> str:
    """A job.yaml for `folder` from the axolotl file `path`, with the account as comments. Raises SpecErrors.

    `overrides` are `key=value`, as of --set; they also settle the errors that they answer.
    """
    text = read_text(path)
    conversion = convert(path)
    document = read_yaml(text)
    errors = conversion.unanswered(overrides)
    located = [LocatedProblem(str(path), document.line(f.where), key_name(f.where), f.message) for f in errors]
    if overrides:
        source = Source(str(path), document, conversion.job, origins=conversion.origins)
        findings = override(source, overrides)
        located += [source.locate(finding) for finding in (*findings, *validate(source.data)[1])]
    if located:
        raise SpecErrors(located)
    job = conversion.job
    if folder != path.resolve().parent:
        job, _ = resolve_paths(job, path.resolve().parent)  # what is missing is said when the job is read
    return f"{_comments(conversion, path, overrides)}\n{write_yaml(job)}"


def _comments(conversion: Conversion, path: Path, overrides: Sequence[str]) -> str:
    lines = conversion.summary(path.name).splitlines()
    lines += [f"  in the place of that: {line}" for text in overrides for line in f"--set {text}".splitlines()]
    return "".join(f"# {line}\n" for line in lines)


def key_tables() -> str:
    """docs/axolotl.md."""
    parts = [
        "# axolotl configurations\n\n"
        "`dolphin launch axolotl.yml` takes an axolotl configuration as it is, and `dolphin init --from axolotl.yml` writes it as a\n"
        "job.yaml. Every key is mapped, has no effect here for a reason that is told, or is an error; a key that is in none of these\n"
        "tables is an error too. Where axolotl's default differs from dolphin's, the job states axolotl's. The GPUs, which axolotl\n"
        "leaves open, are taken to be `resources.accelerators: L40S:8`.\n"
    ]
    for title, about, table in (
        ("Mapped", "becomes", MAPPED),
        ("No effect here", "why", NO_EFFECT),
        ("Errors, where they state something", "why", ERRORS),
        ("Datasets: mapped", "becomes", DATASET_MAPPED),
        ("Datasets: no effect here", "why", DATASET_NO_EFFECT),
        ("Datasets: errors, where they state something", "why", DATASET_ERRORS),
    ):
        grouped: dict[str, list[str]] = {}
        for key, text in table.items():
            grouped.setdefault(text, []).append(f"`{key}`")
        rows = "".join(f"| {' '.join(keys)} | {text.replace('|', '/')} |\n" for text, keys in grouped.items())
        parts.append(f"\n## {title}\n\n| key | {about} |\n|---|---|\n{rows}")
    return "".join(parts)
