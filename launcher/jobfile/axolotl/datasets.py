"""axolotl's `datasets` and `pretraining_dataset`: each entry as sources of a job, and the chat template they ask for.

Owns the names of axolotl's dataset types, old and new. Refuses to know the other keys and whether a file exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.key_hints import nearest_key
from launcher.config.names import URL, looks_like_path
from launcher.config.problems import Finding
from launcher.config.yaml_lines import Where
from launcher.jobfile.axolotl.keys import DATASET_ERRORS, DATASET_MAPPED, DATASET_NO_EFFECT
from launcher.jobfile.axolotl.shapes import SHAPES, misshapen, number
from trainer.run.formats.base import CALL_ROLES, ROLES

DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".gz", ".zst", ".arrow")
OUR_SCHEMES = ("hf://", "s3://", "gs://")

TYPES: dict[str, str] = {
    "alpaca": "alpaca",
    "alpaca_w_system": "alpaca",
    "alpaca_chat.load_qa": "question-answer",
    "completion": "text",
    "pretrain": "text",
    "input_output": "input-output",
}
"""axolotl's type -> dolphin's format, where neither the template nor the columns are a question."""

PROMPT_STYLES = ("alpaca", "alpaca_w_system", "alpaca_chat.load_qa")
"""Types that axolotl writes as a prompt text of its own; dolphin renders every row as turns."""


@dataclass
class Sources:
    """What the entries become."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    templates: list[tuple[Where, str]] = field(default_factory=list)
    """Chat templates asked for, with the place of each."""
    mapped: list[tuple[Where, str, str]] = field(default_factory=list)
    """(place, setting, remark)"""
    no_effect: list[tuple[Where, str]] = field(default_factory=list)
    errors: list[Finding] = field(default_factory=list)
    origins: dict[int, Where] = field(default_factory=dict)
    """Index of a source -> its entry."""


def read_datasets(key: str, entries: Any, folder: Path) -> Sources:
    """Of `datasets` or `pretraining_dataset`, relative to the configuration's folder."""
    found = Sources()
    if isinstance(entries, str):
        entries = [{"path": entries}]
    if not isinstance(entries, list):
        found.errors.append(Finding((key,), "must be a list of datasets, each with a path"))
        return found
    for index, entry in enumerate(entries):
        where = (key, index)
        entry = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict):
            found.errors.append(Finding(where, "must be a group with a path and a type"))
            continue
        if key == "pretraining_dataset":
            entry = {"type": "pretrain", **entry}
        _Entry(found, where, entry, folder).read()
    return found


class _Entry:
    def __init__(self, found: Sources, where: Where, entry: dict[str, Any], folder: Path) -> None:
        self.found, self.where, self.entry, self.folder = found, where, entry, folder
        self.source: dict[str, Any] = {}

    def value(self, key: str) -> Any:
        return self.entry.get(key)

    def fail(self, key: str, message: str) -> None:
        self.found.errors.append(Finding((*self.where, key), message))

    def tell(self, key: str, setting: str, remark: str = "") -> None:
        self.found.mapped.append(((*self.where, key), setting, remark))

    def read(self) -> None:
        self._keys()
        self.entry = {key: self._shaped(key, value) for key, value in self.entry.items()}
        paths = self._paths()
        self._type()
        self._fields_of_turns()
        self._template()
        self._selection(paths)
        for path in paths:
            self.found.origins[len(self.found.sources)] = self.where
            self.found.sources.append({"path": path, **self.source})

    def _shaped(self, key: str, value: Any) -> Any:
        reason = misshapen(key, value) if key in DATASET_MAPPED else None
        if reason is not None:
            self.fail(key, reason)
        return None if reason is not None else number(value) if SHAPES.get(key) == "a number" else value

    def _keys(self) -> None:
        for key, value in self.entry.items():
            empty = value in (None, False, "", [], {})
            if key in DATASET_MAPPED:
                if empty:
                    self.found.no_effect.append(((*self.where, key), "has no value"))
            elif key in DATASET_NO_EFFECT or (empty and key in DATASET_ERRORS):
                self.found.no_effect.append(((*self.where, key), DATASET_NO_EFFECT.get(key, "has no value")))
            elif key in DATASET_ERRORS:
                self.fail(key, DATASET_ERRORS[key])
            else:
                near = nearest_key(str(key), (*DATASET_MAPPED, *DATASET_NO_EFFECT))
                self.fail(str(key), f"unknown key of a dataset{f'; did you mean {near!r}?' if near else '; remove it'}")

    def _paths(self) -> list[str]:
        path, files = self.value("path"), self.value("data_files")
        files = [files] if isinstance(files, str) else files or []
        if not isinstance(path, str) or not path:
            self.fail("path", "is missing; name a file, a folder or a hub dataset")
            return []
        is_loader = path in ("json", "csv", "parquet", "text", "arrow")
        if is_loader and not files:
            self.fail("path", f"{path} names a kind of file, not a file; add data_files")
            return []
        located = self._locate(path)
        if self.value("revision") and located.startswith("hf://"):
            located = f"{located}@{self.value('revision')}"
            self.tell("revision", "data.sources.path")
        elif self.value("revision"):
            self.found.no_effect.append(((*self.where, "revision"), "local files have none"))
        if not files:
            self.tell("path", "data.sources.path", located if located != path else "")
            return [located]
        if not is_loader and located.startswith("hf://"):
            self.source["files"] = [str(name) for name in files]
            self.tell("data_files", "data.sources.files")
            return [located]
        self.tell("data_files", "data.sources.path")
        if is_loader:
            return [self._locate(str(name)) for name in files]
        return [f"{located.rstrip('/')}/{name}" if not str(name).startswith("/") else str(name) for name in files]

    def _locate(self, path: str) -> str:
        if path.startswith("gcs://"):
            return f"gs://{path.removeprefix('gcs://')}"
        if URL.match(path):
            if not path.startswith(OUR_SCHEMES):
                self.fail(
                    "path", f"{path.partition('://')[0]}:// is not read; download it, or use hf://, s3:// or gs://"
                )
            return path
        is_local = looks_like_path(path) or path.endswith(DATA_SUFFIXES) or (self.folder / path).exists()
        return path if is_local or "/" not in path else f"hf://{path}"

    def _type(self) -> None:
        kind = self.value("type")
        if isinstance(kind, dict):
            self._prompter(kind)
            return
        if kind in (None, ""):
            return
        kind = str(kind)
        stem = re.split(r"[.:]", kind)[0]
        if stem in ("sharegpt", "sharegpt_simple", "chat_template"):
            column = self.value("field_messages") or ("messages" if stem == "chat_template" else "conversations")
            self._turns(str(column))
            self.tell("type", "data.sources.format")
            if stem.startswith("sharegpt") and not self.value("conversation"):
                self.tell("type", "data.sources.format", "rendered by model.chat_template; axolotl would take Vicuna's")
            return
        format_name = TYPES.get(kind) or TYPES.get(stem) if not kind.startswith("alpaca_chat") else TYPES.get(kind)
        if format_name is None:
            near = nearest_key(kind, (*TYPES, "sharegpt", "chat_template"))
            hint = f"did you mean {near!r}?" if near else "bring the rows into one of `dolphin data --formats`"
            self.fail("type", f"the dataset type {kind!r} is not read here; {hint}")
            return
        column = self.value("field") or self.value("text_column")
        if format_name == "text" and column and column != "text":
            self.source["fields"] = {"text": str(column)}
        else:
            self.source["format"] = format_name
        written_as_prompt = kind in PROMPT_STYLES or stem in PROMPT_STYLES
        self.tell(
            "type",
            "data.sources.format",
            "rendered as turns of model.chat_template, not as Alpaca's prompt" if written_as_prompt else "",
        )

    def _turns(self, column: str) -> None:
        own = {"conversations": "sharegpt", "messages": "messages", "conversation": "sharegpt-conversation"}
        if column in own:
            self.source["format"] = own[column]
        else:
            self.source["fields"] = {"messages": column}

    def _prompter(self, kind: dict[str, Any]) -> None:
        """`type:` as a group that names the columns."""
        columns = {
            role: kind[key]
            for role, key in (("prompt", "field_instruction"), ("response", "field_output"), ("system", "field_system"))
            if kind.get(key)
        }
        given = kind.get("field_input")
        for key in kind:
            if key not in (
                "field_instruction",
                "field_output",
                "field_system",
                "field_input",
                "format",
                "no_input_format",
                "system_prompt",
                "system_format",
            ):
                self.fail("type", f"unknown key {key!r} of a dataset's type; remove it")
        if kind.get("system_prompt"):
            self.fail("type", "system_prompt: put the system message into the data or into a chat template of your own")
        if given:
            if (columns.get("prompt", "instruction"), given, columns.get("response", "output")) == (
                "instruction",
                "input",
                "output",
            ):
                self.source["format"] = "alpaca"
            else:
                self.fail(
                    "type",
                    f"field_input {given!r} cannot be joined to the prompt; join the columns in the data, or rename them to instruction, input, output",
                )
        elif "prompt" not in columns and "response" in columns:
            self.fail("type", "field_instruction is missing; name the column of the prompt")
        elif not columns:
            self.source["format"] = "alpaca"
        else:
            self.source["fields"] = {
                "prompt": columns["prompt"],
                "response": columns.get("response", "output"),
                **({"system": columns["system"]} if "system" in columns else {}),
            }
        self.tell(
            "type",
            "data.sources.fields",
            "rendered as turns of model.chat_template, not by `format`" if kind.get("format") else "",
        )

    def _fields_of_turns(self) -> None:
        mappings = self.value("message_property_mappings") or {}
        names = {
            "message_property_mappings": [mappings.get("role", "role"), mappings.get("content", "content")]
            if isinstance(mappings, dict)
            else [],
            "message_field_role": [self.value("message_field_role") or "role"],
            "message_field_content": [self.value("message_field_content") or "content"],
        }
        for key, used in names.items():
            strange = [name for name in used if name not in ("role", "from", "content", "value")]
            if strange:
                self.fail(
                    key,
                    f"turns are read from role/content or from/value, not {', '.join(map(str, strange))}; rename them in the data",
                )
        roles = self.value("roles") or {}
        for target, spellings in roles.items() if isinstance(roles, dict) else ():
            for name in [spellings] if isinstance(spellings, str) else spellings or []:
                meant = ROLES.get(str(name)) or ("assistant" if name in CALL_ROLES else None)
                if meant != ROLES.get(str(target)):
                    self.fail("roles", f"the role {name!r} is not read as {target}; rename it in the data")
        for role in self.value("roles_to_train") or ():
            if ROLES.get(str(role)) != "assistant":
                self.fail(
                    "roles_to_train",
                    f"{role!r} is not trained: only the assistant is, or everything (train_on_inputs: true)",
                )
        if self.value("train_on_eos") not in (None, "turn"):
            self.fail(
                "train_on_eos",
                f"{self.value('train_on_eos')!r} is not done: the end marker of every trained turn is trained; write turn",
            )
        prompt = self.value("field_instruction") or self.value("field_human")
        response = self.value("field_output") or self.value("field_model")
        if prompt and response:
            self.source.pop("format", None)
            system = {"system": self.value("field_system")} if self.value("field_system") else {}
            self.source["fields"] = {"prompt": prompt, "response": response, **system}

    def _template(self) -> None:
        for key in ("chat_template_jinja", "chat_template", "conversation"):
            name = self.value(key)
            if name and not (key == "chat_template" and name == "jinja"):
                self.found.templates.append(((*self.where, key), str(name)))
                return

    def _selection(self, paths: list[str]) -> None:
        split = self.value("split")
        if isinstance(split, str):
            self._split(split, is_hub=any(path.startswith("hf://") for path in paths))
        if self.value("name"):
            self.source["subset"] = str(self.value("name"))
            self.tell("name", "data.sources.subset")
        if self.value("drop_system_message"):
            self.source["drop_system"] = True
            self.tell("drop_system_message", "data.sources.drop_system")
        if self.value("shards"):
            self.source["weight"] = self.source.get("weight", 1) / int(self.value("shards"))
            self.tell("shards", "data.sources.weight", "a seeded share, not every n-th row")
            if self.value("shards_idx"):
                self.source["shuffle_seed"] = int(self.value("shards_idx"))
                self.tell("shards_idx", "data.sources.shuffle_seed")
        if self.value("repeats"):
            self.source["weight"] = self.value("repeats")
            self.tell("repeats", "data.sources.weight")

    def _split(self, split: str, is_hub: bool) -> None:
        if is_hub:
            if split != "train":
                self.source["split"] = split
            self.tell("split", "data.sources.split")
            return
        match = re.fullmatch(r"(\w+)(?:\[:(\d+)(%?)\])?", split)
        if match is None:
            self.fail("split", f"{split!r}: only a name, name[:N] or name[:N%] is read; prepare the rows so")
            return
        name, number, percent = match[1], match[2], match[3]
        if name != "train":
            self.source["split"] = name
        if number and percent:
            self.source["weight"] = int(number) / 100
        elif number:
            self.source["samples"] = int(number)
        self.tell("split", "data.sources.split", "a seeded choice, not the first rows" if number else "")
