"""What can be said of `evaluate` by a look at its files: prompts that can be read, functions that are there. Runs none of them."""

from __future__ import annotations

import ast
from pathlib import Path

from launcher.config.problems import Finding
from launcher.jobfile.spec import JobSpec
from trainer.run.exits import BadInput
from trainer.run.measures import function_of
from trainer.run.prompts import read_prompts


def evaluate_findings(job: JobSpec) -> list[Finding]:
    """Of a job whose paths are absolute and there."""
    found = []
    try:
        read_prompts(job.evaluate)
    except BadInput as error:
        found.append(Finding(("evaluate", "prompts"), str(error).removeprefix("evaluate.prompts: ")))
    for index, metric in enumerate(job.evaluate.metrics):
        named = function_of(metric)
        reason = None if named is None else _reason_against(Path(named[0]), named[1])
        if reason is not None:
            found.append(Finding(("evaluate", "metrics", index), reason))
    return found


def _reason_against(file: Path, function: str) -> str | None:
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        return f"{file}{line} is no Python that can be read: {getattr(error, 'msg', error)}; correct it"
    there = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    if function in there:
        return None
    return f"{file} defines no function {function}; it has {', '.join(there) or 'none'}"
