"""`dolphin init`: a commented job.yaml to start from, or an axolotl configuration as one.

Owns the starting values and the layout. Every comment is the explanation of the model's field, so that none can drift.
Never overwrites a file.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from launcher.commands.reference import EXAMPLES
from launcher.config.key_hints import groups_in
from launcher.config.problems import LocatedProblem, SpecErrors
from launcher.config.yaml_lines import inline_yaml
from launcher.jobfile.field_docs import explanations
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage
from launcher.runs.states import EXIT_CODES, EndReason

START: dict[str, Any] = {
    "name": "my-model",
    "model.base": "Qwen/Qwen3-0.6B-Base",
    "model.chat_template": "chatml",
    "data.sources.path": "hf://mlabonne/FineTome-100k",
    "data.sequence_length": 4096,
    "train.micro_batch": 2,
    "train.global_batch": 32,
    "train.learning_rate": 1e-5,
    "train.warmup_ratio": 0.03,
    "train.gradient_checkpointing": True,
    "resources.accelerators": "L40S:1",
}
"""What a new job states; every other setting is shown with its default, as a comment."""

HEADER = """\
# A job for dolphin. Settings that are commented out show their defaults.
#   dolphin validate FILE     every error at once        dolphin plan FILE     steps, memory, hours and price
#   dolphin launch FILE       plan, confirm, train       dolphin schema        completion for your editor
"""

SHOWN_BY_EXAMPLE = ("track.wandb", "track.mlflow", "push", "secrets", "env", "on", "deadline", "budget", "notify")
"""Without a default that would say what may stand there."""


def init_command(output: str = "job.yaml", from_axolotl: str | None = None, overrides: Sequence[str] = ()) -> int:
    """Write a new job file to `output` (`-`: standard output). Returns the exit code: nothing was written where it is not 0.

    `overrides` (`key=value`) are for what axolotl leaves open; BadUsage without a configuration to convert.
    """
    if overrides and from_axolotl is None:
        raise BadUsage("--set: goes with --from; a new job.yaml is edited instead")
    try:
        if from_axolotl is None:
            text = new_job_text()
        else:
            from launcher.commands.convert import converted_text

            text = converted_text(
                Path(from_axolotl), Path.cwd() if output == "-" else Path(output).resolve().parent, overrides
            )
        _write(text, output)
    except SpecErrors as errors:
        print(errors, file=sys.stderr)
        return EXIT_CODES[EndReason.BAD_SPECIFICATION]
    return 0


def _write(text: str, output: str) -> None:
    if output == "-":
        sys.stdout.write(text)
        return
    try:
        with open(output, "x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                os.unlink(output)  # half a job would be refused by the next `init`, and read by `validate`
                raise
    except FileExistsError:
        message = "exists already and is left as it is; name another with -o, or remove it"
        raise SpecErrors([LocatedProblem(output, 1, "", message)]) from None
    except OSError as error:
        raise SpecErrors([LocatedProblem(output, 1, "", f"cannot be written: {error.strerror}")]) from None
    print(f"wrote {output}; next: dolphin validate {output}", file=sys.stderr)


def new_job_text() -> str:
    """A job.yaml that loads as it stands, with every setting explained."""
    return HEADER + _entries(JobSpec, "", "")


def _entries(model: type[BaseModel], indent: str, prefix: str) -> str:
    told = explanations(model)
    return "".join(
        _entry(name, field, told[name], indent, f"{prefix}{name}") for name, field in model.model_fields.items()
    )


def _entry(name: str, field: FieldInfo, explanation: str, indent: str, dotted: str) -> str:
    lead = "\n" if not indent else ""
    comment = "".join(f"{indent}# {line}\n" for line in textwrap.wrap(explanation, 112 - len(indent)))
    groups = groups_in(field.annotation) if dotted not in START else []
    stated = any(key == dotted or key.startswith(f"{dotted}.") for key in START)
    if groups and (stated or (field.annotation is groups[0] and not indent)):
        is_list = field.annotation is not groups[0]
        return f"{lead}{comment}{indent}{name}:\n{_group(groups[0], indent + '  ', dotted, is_list)}"
    if dotted in START:
        return f"{lead}{comment}{indent}{name}: {inline_yaml(START[dotted])}\n"
    shown = EXAMPLES[dotted] if dotted in SHOWN_BY_EXAMPLE else inline_yaml(_default(field))
    return f"{lead}{comment}{indent}# {name}: {shown}\n"


def _group(model: type[BaseModel], indent: str, dotted: str, is_list: bool) -> str:
    inner = indent + "  " if is_list else indent
    text = _entries(model, inner, f"{dotted}.")
    if not is_list:
        return text
    lines = text.splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
    lines[first] = f"{indent}- {lines[first].lstrip()}"
    return "".join(lines)


def _default(field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json")
    return None if default is PydanticUndefined else default
