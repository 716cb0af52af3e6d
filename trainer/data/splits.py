"""Which files of a folder belong to a split, as the hub's own datasets are laid out.

A folder that was cloned from the hub says it in the head of its README.md, or in the names of files and folders; where
nothing says it, everything is the training split. Refuses to know rows. A test split is never trained on by accident.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from trainer.run.exits import BadInput
from trainer.run.local_files import README
from trainer.run.settings.data import SourceSpec

TRAIN = "train"
NAMES = {
    "train": TRAIN, "training": TRAIN,
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Words in names of files and folders -> split."""

_WORD = re.compile(r"(?<![a-z])(" + "|".join(sorted(NAMES, key=len, reverse=True)) + r")(?![a-z])")
_SHARD = re.compile(r"^(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}\b")


def keys_of_split(keys: Sequence[str], source: SourceSpec, folder: Path | None, place: str) -> list[str]:
    """The files (paths below the source, with /) of the source's split, in their order. `folder` is where its README.md
    lies, None where it is not on this machine. Raises BadInput where there are none."""
    if "[" in source.split:
        raise BadInput(f"{place}: split '{source.split}': parts of a split exist on the hub only; use `samples:` here")
    declared = _declared(keys, source, folder, place)
    wanted = NAMES.get(source.split, source.split)
    splits: dict[str, str | None] = {**declared} or {key: split_in_name(key, wanted) for key in keys}
    chosen = [key for key in keys if splits.get(key) == wanted]
    if wanted == TRAIN and not declared:
        chosen = [key for key in keys if splits[key] in (TRAIN, None)]
    if not chosen:
        counts = Counter(split for split in splits.values() if split is not None)
        there = ", ".join(f"{split} ({count} files)" for split, count in sorted(counts.items())) or "none by name"
        raise BadInput(
            f"{place}: holds no file of the split '{source.split}'; its splits are: {there}; set `split:`, or name the file"
        )
    return chosen


def split_in_name(key: str, wanted: str = TRAIN) -> str | None:
    """The split that a path says it belongs to: the file's own name first, then the folder nearest to it. The name of a
    numbered file (train_sft-00000-of-00003) is one where it has a split's word in it, or is the one that is `wanted`."""
    path = PurePosixPath(key.lower())
    shard = _SHARD.match(path.name)
    if shard is not None:
        name = shard["split"]
        if name == wanted or _WORD.search(name):
            return NAMES.get(name, name)
    for part in (path.name, *reversed(path.parts[:-1])):
        word = _WORD.search(part)
        if word is not None:
            return NAMES[word[1]]
    return None


def _declared(keys: Sequence[str], source: SourceSpec, folder: Path | None, place: str) -> dict[str, str]:
    """Split of each file that the README.md's `configs` name; empty where they name none."""
    configs = _configs(folder)
    if not configs:
        return {}
    names = [str(config.get("config_name")) for config in configs]
    if source.subset is not None:
        chosen = [config for config, name in zip(configs, names, strict=True) if name == source.subset]
        if not chosen:
            raise BadInput(f"{place}: has no subset '{source.subset}'; its {README} names {', '.join(names)}")
    else:
        chosen = [
            config for config, name in zip(configs, names, strict=True) if name == "default" or config.get("default")
        ] or configs
        if len(chosen) > 1:
            raise BadInput(f"{place}: has the subsets {', '.join(names)}; name one with `subset:`")
    return {key: split for split, patterns in _data_files(chosen[0]) for key in keys if _matches(key, patterns)}


def _configs(folder: Path | None) -> list[dict[str, Any]]:
    if folder is None:
        return []
    try:
        text = (folder / README).read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return []
    found = head.get("configs") if isinstance(head, dict) else None
    return (
        [config for config in found if isinstance(config, dict) and "data_files" in config]
        if isinstance(found, list)
        else []
    )


def _data_files(config: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(split, patterns) of a configuration, in any of the ways that the hub takes."""
    files = config["data_files"]
    root = str(config.get("data_dir") or "").strip("/")
    entries = (
        files if isinstance(files, list) and any(isinstance(entry, dict) for entry in files) else [{"path": files}]
    )
    out = []
    for entry in entries:
        if isinstance(entry, dict) and entry.get("path") is not None:
            split = str(entry.get("split", TRAIN))
            patterns = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
            out.append(
                (
                    NAMES.get(split, split),
                    [f"{root}/{pattern}".lstrip("/") if root else str(pattern) for pattern in patterns],
                )
            )
    return out


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(key, pattern.removeprefix("./")) or fnmatchcase(key, pattern.removeprefix("./").replace("**/", ""))
        for pattern in patterns
    )
