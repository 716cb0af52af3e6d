"""The files of the base model, as they lie: its JSON files and the headers of its weights. Refuses to know torch.

An export is held against them. A base may be a folder or a hub id, whose files are in the hub's cache since it was loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.run.exits import BadInput
from trainer.run.weights_index import StoredTensor, stored_tensors

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"


def path_of(name: str, file: str, revision: str | None) -> Path | None:
    """Where `file` of the model folder or hub id `name` lies on this machine; None where it has none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    if Path(name).is_absolute():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def json_of(name: str, file: str, revision: str | None) -> dict[str, Any]:
    """The JSON object in a file of the base; empty where there is none."""
    path = path_of(name, file, revision)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def tensors_of(name: str, revision: str | None) -> dict[str, StoredTensor]:
    """What the headers of the base's safetensors files hold, by name; empty where it has none (older formats)."""
    config = path_of(name, CONFIG, revision)
    if config is None:
        return {}
    try:
        return stored_tensors(config.parent)
    except BadInput:
        return {}
