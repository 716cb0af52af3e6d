"""Which settings of a job name something on this machine, made absolute; and what is missing.

Relative names are relative to the job file's folder. Hub ids and URLs are left as they are. Looks at the file system,
changes nothing. Refuses to know what the files hold.
"""

from __future__ import annotations

import copy
import glob
import os
import re
from pathlib import Path
from typing import Any

from launcher.config.key_hints import nearest_key
from launcher.config.names import URL, looks_like_path
from launcher.config.problems import Finding
from launcher.config.yaml_lines import Where
from trainer.run.adapter_files import is_adapter
from trainer.run.chat_templates.registry import TEMPLATES
from trainer.run.measures import function_of

_TEMPLATE_NAMES = ("tokenizer", *TEMPLATES)
TASK_SUFFIXES = (".yaml", ".yml")
TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt")


def resolve_paths(data: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[Finding]]:
    """A copy of the job's data with absolute local paths, and the files that are missing. Skips what has a wrong type."""
    data = copy.deepcopy(data)
    findings: list[Finding] = []
    model, train = _group(data, "model"), _group(data, "train")
    for key in ("base", "tokenizer"):
        _model_folder(model, key, folder, findings)
    _template(model, folder, findings)
    for key in ("sources", "validation"):
        entries = _group(data, "data").get(key)
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, dict):
                _data_path(entry, ("data", key, index, "path"), folder, findings)
    _evaluation(_group(data, "evaluate"), folder, findings)
    spectrum = _group(_group(train, "unfrozen"), "spectrum")
    _snr(spectrum, folder, findings)
    _task_files(_group(data, "evaluate"), folder, findings)
    checkpoint = _group(data, "checkpoint")
    if isinstance(checkpoint.get("store"), str) and not URL.match(checkpoint["store"]):
        checkpoint["store"] = _absolute(checkpoint["store"], folder)
    return data, findings


def _task_files(evaluate: dict[str, Any], folder: Path, findings: list[Finding]) -> None:
    tasks = evaluate.get("tasks")
    if not isinstance(tasks, list):
        return
    for index, task in enumerate(tasks):
        if isinstance(task, str) and task.endswith(TASK_SUFFIXES):
            path = Path(_absolute(task, folder))
            if path.is_file():
                tasks[index] = str(path)
            else:
                findings.append(Finding(("evaluate", "tasks", index), f"no such file: {path}; {_remedy(folder)}"))


def _group(data: Any, key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _absolute(text: str, folder: Path) -> str:
    """Without resolving links: a data set behind a link stays named as its owner names it."""
    path = Path(os.path.expanduser(text))  # which leaves `~nobody` as it is: there is no such file
    parts: list[str] = []
    for part in (path if path.is_absolute() else folder / path).parts:
        if part == "..":
            parts = parts[:1] if len(parts) == 1 else parts[:-1]
        else:
            parts.append(part)
    return str(Path(*parts))


def _model_folder(model: dict[str, Any], key: str, folder: Path, findings: list[Finding]) -> None:
    name = model.get(key)
    if not isinstance(name, str) or not name or URL.match(name):
        return
    path = Path(_absolute(name, folder))
    if path.is_dir():
        needed = ("config.json",) if key == "base" else ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
        if not any((path / file).exists() for file in needed):
            remedy = "name a model's folder"
            if is_adapter(path):
                remedy = (
                    f"it holds an adapter: make one model of it and its base (dolphin merge {path} DIR), and name that"
                )
            findings.append(Finding(("model", key), f"the folder {path} has no {needed[0]}; {remedy}"))
        model[key] = str(path)
    elif path.exists():
        findings.append(Finding(("model", key), f"{path} is a file; name the folder of the model"))
    elif looks_like_path(name):
        findings.append(
            Finding(
                ("model", key),
                f"no such folder: {path}; {_remedy(folder)}, or name a hub model as owner/name",
            )
        )


def _remedy(folder: Path) -> str:
    """What to do about a missing file: an example brings a build.py beside its job, which makes its files."""
    builder = folder / "build.py"
    return f"`python {builder}` makes it" if builder.is_file() else "correct it"


def _template(model: dict[str, Any], folder: Path, findings: list[Finding]) -> None:
    name = model.get("chat_template")
    if not isinstance(name, str) or name in _TEMPLATE_NAMES or "{{" in name or "{%" in name:
        return
    path = Path(_absolute(name, folder)) if name else folder
    if path.is_file():
        model["chat_template"] = str(path)
    elif "/" in name or name.endswith(TEMPLATE_SUFFIXES):
        findings.append(Finding(("model", "chat_template"), f"no such file: {path}; correct it"))
    else:
        near = nearest_key(name, _TEMPLATE_NAMES)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(_TEMPLATE_NAMES)}; or name a .jinja file"
        findings.append(Finding(("model", "chat_template"), f"no template is called {name!r}; {hint}"))


def _data_path(source: dict[str, Any], where: Where, folder: Path, findings: list[Finding]) -> None:
    name = source.get("path")
    if not isinstance(name, str) or not name or URL.match(name):
        return
    path = _absolute(name, folder)
    if Path(path).exists() or (glob.has_magic(path) and next(glob.iglob(path, recursive=True), None)):
        source["path"] = path
    elif glob.has_magic(path):
        findings.append(Finding(where, f"no file matches {path}; correct it"))
    else:
        hub = f", or write hf://{name} for the hub dataset" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
        findings.append(Finding(where, f"no such file or folder: {path}; {_remedy(folder)}{hub}"))


def _evaluation(evaluate: dict[str, Any], folder: Path, findings: list[Finding]) -> None:
    """The file of prompts, and the files of functions that score answers."""
    prompts = evaluate.get("prompts")
    if isinstance(prompts, str) and prompts:
        evaluate["prompts"] = _file(prompts, ("evaluate", "prompts"), folder, findings)
    metrics = evaluate.get("metrics")
    if isinstance(metrics, list):
        for index, metric in enumerate(metrics):
            named = function_of(metric) if isinstance(metric, str) else None
            if named is not None:
                path = _file(named[0], ("evaluate", "metrics", index), folder, findings)
                metrics[index] = f"{path}:{named[1]}"


def _file(name: str, where: Where, folder: Path, findings: list[Finding]) -> str:
    path = _absolute(name, folder)
    if not Path(path).is_file():
        findings.append(Finding(where, f"no such file: {path}; correct it"))
    return path


def _snr(spectrum: dict[str, Any], folder: Path, findings: list[Finding]) -> None:
    name = spectrum.get("snr")
    if not isinstance(name, str) or not name or URL.match(name):
        return
    path = Path(_absolute(name, folder))
    if path.exists():
        spectrum["snr"] = str(path)
    elif name.endswith(".json") or looks_like_path(name):
        message = f"no such file or folder: {path}; `dolphin spectrum scan MODEL` writes it"
        findings.append(Finding(("train", "unfrozen", "spectrum", "snr"), message))
