"""A model's parameter names and shapes without weights and without torch: from a safetensors index or header, else from config.json.

Owns the check that every unfrozen pattern hits something. Refuses to download. What it does not know it says nothing about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from launcher.config.problems import Finding
from launcher.config.yaml_lines import Where
from launcher.models.architecture import find_architecture, stored_shapes
from launcher.models.hub_cache import local_folder
from launcher.runs.ledger import cache_dir
from trainer.run.exits import BadInput
from trainer.run.patterns import match
from trainer.run.settings.train import UnfrozenSpec
from trainer.run.spec import TrainSpec
from trainer.run.weight_names import without_prefix


def pattern_findings(spec: TrainSpec) -> list[Finding]:
    """Invalid patterns, and patterns that hit no parameter where the model's names are at hand."""
    unfrozen = spec.train.unfrozen
    if isinstance(unfrozen, UnfrozenSpec):
        where: Where = ("train", "unfrozen", "patterns")
        patterns = unfrozen.patterns
    elif unfrozen is not None:
        patterns, where = unfrozen, ("train", "unfrozen")
    else:
        return []
    if not patterns and not isinstance(unfrozen, UnfrozenSpec):
        return [Finding(where, "is an empty list: nothing would be trained; remove it to train all")]
    findings = []
    prefix = spec.model.weights_prefix
    names = [without_prefix(name, prefix) for name in parameter_names(spec.model.base, spec.model.revision)]
    text = "\n".join(names)
    for index, pattern in enumerate(patterns):
        if _PLAIN.fullmatch(pattern) and pattern in text:
            continue  # it hits as it stands; compiling a hundred of them would take longer than all else here
        try:
            missed = match([pattern], names).missed
        except re.error as error:
            findings.append(Finding((*where, index), f"{pattern!r} is no regular expression: {error}; correct it"))
            continue
        if not pattern:
            findings.append(Finding((*where, index), "is empty and would match every parameter; remove it"))
        elif names and missed:
            message = f"{pattern!r} matches no parameter{_layers(names)}; 'dolphin spectrum names' lists them"
            findings.append(Finding((*where, index), message))
    return findings


_PLAIN = re.compile(r"[\w.]+")
"""A pattern of these characters alone hits at least the names that hold it literally."""


def _layers(names: list[str]) -> str:
    numbers = [int(n) for name in names for n in re.findall(r"(?:layers|h|blocks)\.(\d+)\.", name)]
    return f" (the model has layers 0-{max(numbers)})" if numbers else ""


def parameter_names(base: str, revision: str | None = None) -> list[str]:
    """Names of all parameters, or an empty list where neither the weights nor a known configuration is at hand."""
    folder = local_folder(base, revision)
    names = _names_of_index(folder) if folder is not None else []
    if not names and folder is not None and any(folder.glob("*.safetensors")):
        names = list(_or_nothing(lambda: stored_shapes(folder)))
    if not names:
        names = list(_or_nothing(lambda: find_architecture(base, revision, cache=cache_dir(), may_ask=False).shapes))
    if "model.embed_tokens.weight" in names and "lm_head.weight" not in names:
        names.append("lm_head.weight")  # tied to the embeddings: stored once, and hit by either name
    return names


def _or_nothing(find: Callable[[], Iterable[str]]) -> Iterable[str]:
    """An unknown family or an unreadable file is no fault of a pattern: then the check is left to the trainer."""
    try:
        return find()
    except BadInput:
        return []


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _names_of_index(folder: Path) -> list[str]:
    weights = _json(folder / "model.safetensors.index.json").get("weight_map")
    return list(weights) if isinstance(weights, dict) else []
