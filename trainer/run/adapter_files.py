"""An adapter's folder, from its names and its adapter_config.json: what it stands beside. Refuses to know torch and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from trainer.run.exits import BadInput

WEIGHTS, CONFIG, INNER = "adapter_model.safetensors", "adapter_config.json", "adapter"
"""Its two files, and the folder that holds it where a merged model lies around it."""


class Base(NamedTuple):
    name: str
    """A folder or hub id."""
    revision: str | None


def is_adapter(folder: str | Path) -> bool:
    """Whether `folder` holds an adapter and no model of its own."""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def settings_of(folder: Path) -> dict[str, Any]:
    """The contents of adapter_config.json. Raises BadInput where it is not there or names no base."""
    try:
        found: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} is no adapter folder: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("base_model_name_or_path"), str):
        raise BadInput(f"{folder / CONFIG} names no base model")
    return found


def base_of(folder: Path) -> Base:
    """What the adapter in `folder` stands beside. Raises BadInput."""
    settings = settings_of(folder)
    return Base(settings["base_model_name_or_path"], settings.get("revision"))
