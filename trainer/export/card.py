"""What a model card says: this run's facts and nothing else, as `card_text` writes them.

Owns where each fact comes from. Local paths become file names: a card is published, a home folder is not.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import yaml
from transformers import PreTrainedTokenizerBase

from trainer.data.plan import DataPlan
from trainer.engine import optimizer
from trainer.export import base_files, card_text, example, run_facts
from trainer.model.freeze import FreezeReport
from trainer.run.data_report import left_out
from trainer.run.exits import EndKind
from trainer.run.measures import score_name
from trainer.run.redaction import redact
from trainer.run.run_folder import RunDir, read_lines
from trainer.run.settings.adapter import AdapterSpec
from trainer.run.spec import NodeJob, TrainSpec

UNFINISHED = {EndKind.BUDGET_REACHED: "budget", EndKind.DEADLINE_REACHED: "deadline"}
NUM_SAMPLES = 4
"""Answers that the card shows."""
OF_A_MACHINE = ("wandb_", "mlflow_", "comet_", "hub_", "output_dir", "dataset_prepared_path", "resume_from_checkpoint")
"""Beginnings of axolotl's keys that say where it ran and who watched."""
PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "tokenizers")


class Made(NamedTuple):
    """How the model was trained, as only the process that did it knows."""

    report: FreezeReport
    world_size: int
    kernel: str
    """What `build.kernel_of` says."""
    step: int
    """After which these weights were saved."""
    last_step: int
    limit: EndKind | None = None
    """The job's limit that ended the run after `last_step`."""


class Description:
    """Makes the card of a folder that is being written, and completes it once the folder has been tried."""

    def __init__(self, job: NodeJob, tokenizer: PreTrainedTokenizerBase, plan: DataPlan, made: Made) -> None:
        self._job, self._tokenizer, self._plan, self._made = job, tokenizer, plan, made
        self._facts: dict[str, Any] | None = None

    def __call__(self, adapter: str | None = None) -> str:
        """The card's text. `adapter` tells how an adapter is made and loaded."""
        self._facts = facts_of(self._job, self._tokenizer, self._plan, self._made, adapter)
        return card_text.render(self._facts, {})

    def keep(self, folder: Path, sample: dict[str, str] | None) -> None:
        """Leave card.json in the folder, with a question and the model's answer, and the card as it follows from it."""
        if self._facts is None:
            return
        text = json.dumps(self._facts | {"sample": sample}, ensure_ascii=False, indent=1)
        (folder / card_text.FACTS).write_text(text + "\n", encoding="utf-8")
        card_text.write(folder)


def facts_of(
    job: NodeJob, tokenizer: PreTrainedTokenizerBase, plan: DataPlan, made: Made, adapter: str | None = None
) -> dict[str, Any]:
    """All that the card says, as JSON values. Reads the run's metrics.jsonl for the table of results."""
    report, world_size, kernel, weights_step, last_step, limit = made
    spec = job.spec
    shown = example.of_run(job.run_dir, tokenizer)
    run = RunDir(job.run_dir)
    results = training_results(run)
    base = shorten(spec.model.base)
    return {
        "name": spec.name,
        "description": spec.card.description.strip(),
        "license": spec.card.license or license_of(spec.model.base, spec.model.revision),
        "language": list(spec.card.language),
        "tags": list(spec.card.tags),
        "base": base,
        "base_model": base if re.fullmatch(r"[\w.-]+/[\w.-]+", spec.model.base) else None,
        "revision": spec.model.revision,
        "verb": _verb(job),
        "adapter": None
        if spec.train.adapter is None
        else {
            "type": spec.train.adapter.type,
            "merged": spec.export.merged,
            "text": adapter,
        },
        "datasets": hub_datasets(spec),
        "conversations": plan.num_conversations,
        "tokens": plan.tokens_per_epoch,
        "trained_tokens": plan.trained_tokens_per_epoch,
        "final_loss": next((row["eval_loss"] for row in reversed(results) if row["step"] <= weights_step), None),
        "weights_step": weights_step if weights_step != plan.total_steps else None,
        "other_sets": [f"{entry.name}/loss" for entry in (spec.data.validation or ())[1:]],
        "scores": [score_name(metric) for metric in spec.evaluate.metrics],
        "samples": samples_of(run, weights_step),
        "example": None if shown is None else {"text": shown.text, "end": shown.end},
        "parameters": report.num_parameters,
        "trained_parameters": report.num_trainable,
        "sequence_length": spec.data.sequence_length,
        "packing": spec.data.packing,
        "sources": [shorten(source.path) for source in spec.data.sources],
        "data": data_table(run),
        "kernel": kernel,
        "hyperparameters": hyperparameters(job, plan, world_size),
        "results": results,
        "run": run_facts.of(job, run, time.time()),
        "configuration": configuration(job),
        "axolotl": axolotl(job.axolotl),
        "steps": plan.total_steps,
        "last_step": last_step,
        "unfinished": None if limit is None else UNFINISHED[limit],
        "sample": None,
        "versions": [(package, importlib.metadata.version(package)) for package in PACKAGES],
    }


def hub_datasets(spec: TrainSpec) -> list[str]:
    """Hub ids of the data, each once."""
    paths = [source.path.removeprefix("hf://") for source in spec.data.sources if source.path.startswith("hf://")]
    return list(dict.fromkeys("/".join(path.split("@")[0].split("/")[:2]) for path in paths))


def license_of(base: str, revision: str | None) -> str | None:
    """What the base's own card says of its license; None where it has none here, or does not say."""
    path = base_files.path_of(base, card_text.CARD, revision)
    if path is None:
        return None
    head = re.match(r"---\n(.*?\n)---\n", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        values = yaml.safe_load(head[1]) if head else {}
    except yaml.YAMLError:
        return None
    found = values.get("license") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def data_table(run: RunDir) -> list[dict[str, Any]]:
    """What became of each source's rows, by the data report."""
    rows = []
    for source in card_text.read_json(run.data_report).get("sources", []):
        rows.append({
            "source": shorten(source["path"]), "rows": source["rows"], "conversations": source["train_conversations"],
            "held_out": source["validation_conversations"],
            "left_out": left_out(source),
            "tokens": source["tokens"], "trained_tokens": source["trained_tokens"],
        })  # fmt: skip
    return rows


def _verb(job: NodeJob) -> str:
    if job.spec.train.adapter is not None:
        return f"fine-tuned with {'QLoRA' if job.spec.train.adapter.type == 'qlora' else 'LoRA'} adapters"
    return "fine-tuned" if job.spec.model.init == "pretrained" else "trained from fresh weights"


def training_results(run: RunDir) -> list[dict[str, Any]]:
    """A row an evaluation: the training loss of its step (`-` before the first), epoch, step and what was measured, by name.
    A step that was trained again after a resume counts once."""
    lines = run.read_metrics()
    lines = [line for line in lines if isinstance(line.get("step"), int)]
    losses = {line["step"]: line["loss"] for line in lines if isinstance(line.get("loss"), int | float)}
    rows = {line["step"]: line for line in lines if "loss" not in line and isinstance(line.get("epoch"), int | float)}
    return [
        defaultdict(lambda: None, row, loss=f"{losses[step]:.4f}" if step in losses else "-")
        for step, row in sorted(rows.items())
    ]


def samples_of(run: RunDir, step: int) -> list[dict[str, Any]]:
    """The first answers of the last evaluation up to `step`; one that was given again after a resume counts once."""
    lines = {
        (line["step"], line["number"]): line
        for line in read_lines(run.samples)
        if isinstance(line.get("step"), int) and line["step"] <= step and isinstance(line.get("number"), int)
    }
    newest = max((at for at, _ in lines), default=0)
    return [line for (at, _), line in sorted(lines.items()) if at == newest][:NUM_SAMPLES]


def hyperparameters(job: NodeJob, plan: DataPlan, world_size: int) -> list[tuple[str, Any]]:
    t = job.spec.train
    return [
        ("learning rate", t.learning_rate),
        ("schedule", f"{t.schedule}, {optimizer.warmup_steps(t, plan.total_steps)} steps of warm-up"),
        ("optimizer", optimizer.described(t)),
        *(_of_adapter(t.adapter) if t.adapter is not None else []),
        ("weight decay", t.weight_decay),
        ("gradient clipping", t.max_grad_norm or "none"),
        ("distributed type", f"{'multi' if world_size > 1 else 'single'}-{'GPU' if job.device == 'cuda' else 'CPU'}"),
        ("epochs", f"{plan.epoch_of(plan.total_steps):.2f}"),
        ("steps", plan.total_steps),
        ("global batch", f"{job.global_batch} sequences"),
        ("micro batch", t.micro_batch),
        ("gradient accumulation steps", -(-job.global_batch // (t.micro_batch * world_size))),
        ("total train batch size", job.global_batch),
        ("total eval batch size", t.micro_batch * world_size),
        ("devices", world_size),
        ("precision", t.precision),
        ("ZeRO stage", t.zero),
        ("gradient checkpointing", {0: "no", 1: "yes"}.get(t.recompute_every, f"one layer in {t.recompute_every}")),
        ("seed", t.seed),
    ]


def _of_adapter(adapter: AdapterSpec) -> list[tuple[str, Any]]:
    target = adapter.target if isinstance(adapter.target, str) else ", ".join(adapter.target)
    extras = [name for name in ("rslora", "dora", "trainable_tokens") if getattr(adapter, name)]
    return [
        (
            "adapter",
            f"{adapter.type}, rank {adapter.rank}, alpha {adapter.alpha}, dropout {adapter.dropout:g}, on {target}",
        ),
        *(
            [("adapter, besides", ", ".join([*extras, *adapter.modules_to_save]))]
            if extras or adapter.modules_to_save
            else []
        ),
    ]


def configuration(job: NodeJob) -> str:
    """The specification as YAML, what was left at its default left out, local paths as file names."""
    dump = job.spec.model_dump(mode="json", exclude_defaults=True)
    for group in ("track", "card"):
        dump.pop(group, None)
    dump.get("checkpoint", {}).pop("store", None)
    return yaml.safe_dump(_published(dump), sort_keys=False, allow_unicode=True, width=110)


def axolotl(text: str) -> str:
    """An axolotl configuration as `configuration` shows a job: what is of a machine or a tracker left out. Empty for one that is
    none."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    if not isinstance(data, dict):
        return ""
    kept = {key: value for key, value in data.items() if not str(key).startswith(OF_A_MACHINE)}
    return redact(yaml.safe_dump(_published(kept), sort_keys=False, allow_unicode=True, width=110))


def shorten(path: str) -> str:
    """The last part of a local path; hub ids as they are, URLs without a name, a password or a query. One line."""
    if "://" in path:
        parts = urlsplit(path)
        path = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    elif path.startswith(("/", "~", "./", "../")):
        path = PurePosixPath(path).name
    return " ".join("".join(c if c.isprintable() else " " for c in path).split())


def _published(value: Any) -> Any:
    """A part of the configuration with every path and URL in it shortened."""
    if isinstance(value, dict):
        return {name: _published(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_published(inner) for inner in value]
    is_place = (
        isinstance(value, str) and "\n" not in value and ("://" in value or value.startswith(("/", "~", "./", "../")))
    )
    return shorten(value) if is_place else value
