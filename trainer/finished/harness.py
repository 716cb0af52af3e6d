"""A finished model asked by EleutherAI's lm-evaluation-harness, beside its base. Run by hand: `python -m trainer.finished.harness`.

Owns results.json: which tasks were asked of which weights, and what came of it. A task that was answered by the same weights is not
asked again; one that fails loses no other. What a task is, and how it is scored, is the harness's.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.export import base_files, card_text
from trainer.run.exits import BadInput, ExitCode
from trainer.run.run_folder import RunDir, write_atomic
from trainer.run.weights_index import fingerprint

Say = Callable[[str], None]
TUNED, BASE = "tuned", "base"


@dataclass(frozen=True, slots=True)
class Weights:
    """Of a model that is asked: a folder, or a hub id."""

    source: str
    revision: str | None = None

    @property
    def key(self) -> str:
        """Tells these weights from others."""
        tensors = base_files.tensors_of(self.source, self.revision)
        return (
            fingerprint(tensors) if tensors else hashlib.sha256(f"{self.source}@{self.revision}".encode()).hexdigest()
        )


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked."""

    tasks: tuple[str, ...]
    """Names, or paths of task files."""
    limit: int | None = None
    chat_template: bool = False
    max_minutes: float | None = None
    batch: str = "auto"


@dataclass
class Results:
    """results.json: read, added to, and written after every task."""

    paths: list[Path]
    """Where it is kept; read from the first that is there."""
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By task, then by `tuned` and `base`: what the harness said, with what it was asked for."""
    failed: dict[str, str] = field(default_factory=dict)
    limit: int | None = None

    @classmethod
    def read(cls, paths: list[Path]) -> Results:
        found = next((values for path in paths if (values := card_text.read_json(path))), {})
        return cls(paths, found.get("answers", {}))

    def known(self, task: str, which: str, asked: dict[str, Any]) -> bool:
        return bool(self.answers.get(task, {}).get(which, {}).get("asked") == asked)

    def take(self, task: str, which: str, asked: dict[str, Any], said: dict[str, Any]) -> None:
        self.answers.setdefault(task, {})[which] = {"asked": asked, **said}
        self.write()

    def write(self) -> None:
        values = {
            "harness": importlib.metadata.version("lm_eval"), "limit": self.limit, "rows": rows_of(self.answers),
            "failed": self.failed, "answers": self.answers,
        }  # fmt: skip
        for path in self.paths:
            write_atomic(path, json.dumps(values, ensure_ascii=False, indent=1) + "\n")


def evaluate(folder: Path, base: Weights | None, questions: Questions, kept_in: Path | None, say: Say) -> Results:
    """Ask the model in `folder`, and `base`, every task; the card and results.json in the folder tell it (`kept_in` has a copy,
    which outlives another export).

    Raises BadInput where the harness is missing, knows no such task, or the folder holds no whole model.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise BadInput("evaluations need the package lm-eval: pip install 'dolphin-launcher[eval]'")
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"{folder}: holds no config.json: it is no whole model; `dolphin merge` makes one of an adapter and its base"
        )
    manager, names = _known_tasks(questions.tasks)
    paths = [folder / card_text.RESULTS, *([kept_in / card_text.RESULTS] if kept_in is not None else [])]
    results = Results.read(paths)
    results.limit = questions.limit
    began = time.monotonic()
    for which, weights in ((TUNED, Weights(str(folder))), (BASE, base)):
        if weights is None:
            continue
        asked = {name: _asked(weights, path, questions) for name, path in names.items()}
        open_tasks = [name for name in names if not results.known(name, which, asked[name])]
        for name in sorted(set(names) - set(open_tasks)):
            say(f"{name}: {which} is known")
        if not open_tasks:
            continue
        try:
            model = _load(weights, questions)
        except Exception as error:  # a base that is gated, a disk that is full: the other's answers are kept
            results.failed |= {f"{name} ({which})": _first_line(error) for name in open_tasks}
            say(f"warning: the {which} model does not load: {_first_line(error)}")
            continue
        for name in open_tasks:
            if questions.max_minutes is not None and time.monotonic() - began > questions.max_minutes * 60:
                results.failed[f"{name} ({which})"] = (
                    f"not asked: evaluate.max_minutes {questions.max_minutes:g} were over"
                )
                continue
            file = names[name]
            with contextlib.chdir(
                Path.cwd() if file is None else file.parent
            ):  # a task file names its data from where it lies
                _ask(model, manager, name, questions, (which, asked[name]), results, say)
        del model
        gc.collect()
    results.write()
    card_text.write(folder)
    return results


def _ask(
    model: Any,
    manager: Any,
    name: str,
    questions: Questions,
    of: tuple[str, dict[str, Any]],
    results: Results,
    say: Say,
) -> None:
    """One task of one model. Many parameters: what is asked, of whom, and where the answer goes."""
    import lm_eval

    which, asked = of
    began = time.monotonic()
    try:
        found = lm_eval.simple_evaluate(
            model=model, tasks=[name], limit=questions.limit, task_manager=manager, log_samples=False,
            apply_chat_template=questions.chat_template, batch_size=_batch(model, questions),
        )  # fmt: skip
    except Exception as error:  # whatever a task raises, the others are asked
        results.failed[f"{name} ({which})"] = _first_line(error)
        say(f"warning: {name} of the {which} model failed: {_first_line(error)}")
        return
    if found is None:
        return
    keys = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better")
    results.take(name, which, asked, json.loads(json.dumps({key: found.get(key, {}) for key in keys}, default=str)))
    say(f"{name}: {which} asked in {time.monotonic() - began:.0f} s")


def rows_of(answers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The table's rows, a metric each: groups before their tasks, which are set in by their depth. What the base said stands
    beside where it was asked the same."""
    rows = []
    for said in answers.values():
        tuned = said.get(TUNED)
        if tuned is None:
            continue
        base = said.get(BASE, {})
        is_same = {k: v for k, v in base.get("asked", {}).items() if k != "weights"} == {
            k: v for k, v in tuned.get("asked", {}).items() if k != "weights"
        }
        children = {name for subtasks in tuned["group_subtasks"].values() for name in subtasks}
        for name in [name for name in tuned["results"] if name not in children]:
            rows += _rows_below(name, 0, tuned, base if is_same else {})
    return rows


def _rows_below(name: str, depth: int, tuned: dict[str, Any], base: dict[str, Any]) -> list[dict[str, Any]]:
    said, rows = tuned["results"].get(name, {}), []
    of_base = base.get("results", {}).get(name, {})
    subtasks = tuned["group_subtasks"].get(name, [])
    for key in sorted(key for key in said if "," in key and not key.split(",")[0].endswith("_stderr")):
        metric, _, filter_name = key.partition(",")
        error = f"{metric}_stderr,{filter_name}"
        rows.append({
            "task": name, "alias": str(said.get("alias", name)).strip().removeprefix("- "), "depth": depth,
            "version": tuned["versions"].get(name, "N/A"), "filter": filter_name, "shots": tuned["n-shot"].get(name, 0),
            "metric": metric, "higher_is_better": (tuned["higher_is_better"].get(name) or {}).get(metric, True) is not False,
            "value": _number(said[key]), "stderr": _number(said.get(error)), "is_group": bool(subtasks),
            "base_value": _number(of_base.get(key)), "base_stderr": _number(of_base.get(error)),
        })  # fmt: skip
    for child in subtasks:
        rows += _rows_below(child, depth + 1, tuned, base)
    return rows


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class _TaskFile(yaml.SafeLoader):
    """Reads a task file without what it would run."""


_TaskFile.add_constructor("!function", lambda loader, node: str(node.value))


def _known_tasks(tasks: tuple[str, ...]) -> tuple[Any, dict[str, Path | None]]:
    """The harness's tasks, with those of the files named, and each task's file. Raises BadInput for one that it does not know."""
    from lm_eval.tasks import TaskManager

    names: dict[str, Path | None] = {}
    for task in tasks:
        if not task.endswith((".yaml", ".yml")):
            names[task] = None
            continue
        path = Path(task).absolute()
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskFile)
        except (OSError, yaml.YAMLError) as error:
            raise BadInput(f"{path}: no task file: {' '.join(str(error).split())}") from error
        name = values.get("task") or values.get("group") if isinstance(values, dict) else None
        if not isinstance(name, str):
            raise BadInput(f"{path}: names no task: a task file of lm-evaluation-harness begins with `task: NAME`")
        names[name] = path
    folders = list(dict.fromkeys(str(path.parent) for path in names.values() if path is not None))
    manager = TaskManager(include_path=folders or None, include_defaults=any(path is None for path in names.values()))
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise BadInput(f"lm-evaluation-harness knows no task {', '.join(unknown)}; `lm-eval ls tasks` lists them")
    return manager, names


def _asked(weights: Weights, path: Path | None, questions: Questions) -> dict[str, Any]:
    """What makes an answer of then one of now."""
    file = hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None
    return {
        "weights": weights.key, "limit": questions.limit, "chat_template": questions.chat_template, "file": file,
        "harness": importlib.metadata.version("lm_eval"),
    }  # fmt: skip


def _load(weights: Weights, questions: Questions) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = {} if weights.revision is None else {"revision": weights.revision}
    return HFLM(pretrained=weights.source, dtype="bfloat16", device=device, batch_size=1, **given)


def _batch(model: Any, questions: Questions) -> Any:
    """The harness's own search for a batch that fits is for GPUs."""
    if questions.batch == "auto" and model.device.type == "cpu":
        return 8
    return questions.batch


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return re.sub(r"(?<![\w:/])/(?:[^\s/'\"]+/)+", "", line)  # it stands in the card, and a home folder does not


def base_of_folder(folder: Path) -> Weights | None:
    """The base that a model folder's card names; None where it names none that can be found again."""
    found = card_text.read_json(folder / card_text.FACTS)
    name = found.get("base_model")
    return Weights(name, found.get("revision")) if isinstance(name, str) else None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="trainer.finished.harness", description="Ask a model and its base the same tasks."
    )
    parser.add_argument("model", type=Path, help="the model folder; its results.json and card are written")
    parser.add_argument(
        "--task", action="append", required=True, help="name of a task, or path of a task file; may be repeated"
    )
    parser.add_argument("--base", help="folder or hub id of the base; `none` for no comparison")
    parser.add_argument("--revision", help="branch, tag or commit of the base")
    parser.add_argument("--limit", type=int, help="questions of each task")
    parser.add_argument("--chat-template", action="store_true", help="put questions into the chat template")
    parser.add_argument("--run-dir", type=Path, help="the run's folder, which keeps a copy of results.json")
    options = parser.parse_args()
    base = (
        None
        if options.base == "none"
        else Weights(options.base, options.revision)
        if options.base
        else base_of_folder(options.model)
    )
    questions = Questions(tuple(options.task), options.limit, options.chat_template)
    try:
        results = evaluate(
            options.model, base, questions, options.run_dir, lambda line: print(line, file=sys.stderr, flush=True)
        )
    except BadInput as error:
        print(f"dolphin: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)
    if base is None:
        print("no base to compare with: --base names one", file=sys.stderr)
    print("\n".join(card_text.table(rows_of(results.answers))))
    for name, why in results.failed.items():
        print(f"dolphin: {name} could not be evaluated: {why}", file=sys.stderr)
    sys.exit(ExitCode.FAILED if results.failed else ExitCode.DONE)


def of_run(run: RunDir, spec: Any, say: Say) -> str:
    """What a job asks of its exported model; what came of it, in a line."""
    wanted = spec.evaluate
    base = Weights(spec.model.base, spec.model.revision) if wanted.base and spec.model.init == "pretrained" else None
    questions = Questions(wanted.tasks, wanted.limit, wanted.chat_template, wanted.max_minutes)
    results = evaluate(run.model, base, questions, run.path, say)
    told = [
        f"{row['task']} {row['metric']} {row['value']:.4f}"
        for row in rows_of(results.answers)
        if row["depth"] == 0 and row["value"] is not None
    ]
    failed = f"; {len(results.failed)} not evaluated, see the card" if results.failed else ""
    return ", ".join(told[:4]) + failed if told or failed else "nothing"


if __name__ == "__main__":
    main()
