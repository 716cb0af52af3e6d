"""`dolphin schema`: job.yaml as a JSON Schema, for completion and checking in an editor.

Owns the dialect: draft 7, which the YAML plugins of editors understand. The settings and their explanations are the models'.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from launcher.config.key_hints import groups_in
from launcher.jobfile.field_docs import explanations
from launcher.jobfile.load import OWN_KEYS
from launcher.jobfile.spec import JobSpec


def job_schema() -> dict[str, Any]:
    """The schema of a whole job.yaml. A group with defaults may be left empty (`train:`), as the reader allows."""
    schema = _as_draft_7(JobSpec.model_json_schema(mode="validation"))
    _explain(schema, JobSpec)
    for name, field in JobSpec.model_fields.items():
        if not field.is_required() and isinstance(schema["properties"][name].get("$ref"), str):
            group = schema["properties"][name]
            schema["properties"][name] = {"anyOf": [{"$ref": group.pop("$ref")}, {"type": "null"}], **group}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **schema,
        "patternProperties": {f"^{OWN_KEYS}": {"description": "Your own: YAML anchors to be used below, notes."}},
        "title": "dolphin job",
        "description": "A fine-tuning job for dolphin: `dolphin validate`, `dolphin plan` and `dolphin launch` take it.",
    }


def schema_text() -> str:
    """What `dolphin schema` prints and docs/job.schema.json holds."""
    return json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"


def schema_command() -> int:
    """Print the schema. Returns the exit code."""
    print(schema_text(), end="")
    return 0


def _explain(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Put the explanations on the settings of `model` and of every group under it."""
    target = schema if model is JobSpec else schema["$defs"][model.__name__]
    target.pop("description", None)
    for name, text in explanations(model).items():
        if name in target["properties"]:
            target["properties"][name]["description"] = text
    for field in model.model_fields.values():
        for group in groups_in(field.annotation):
            _explain(schema, group)


def _as_draft_7(value: Any) -> Any:
    """Tuples are `items: [...]` there. Titles repeat the key and go."""
    if isinstance(value, list):
        return [_as_draft_7(item) for item in value]
    if not isinstance(value, dict):
        return value
    out = {key: _as_draft_7(item) for key, item in value.items() if not (key == "title" and isinstance(item, str))}
    if "prefixItems" in out:
        out["items"] = out.pop("prefixItems")
    return out
