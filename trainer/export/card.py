"""The model card: README.md of the model folder, filled with this run's facts and nothing else.

Owns what the card says. Local paths become file names: a card is published, a home folder is not.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import jinja2
import yaml
from transformers import PreTrainedTokenizerBase

from trainer.data.plan import DataPlan
from trainer.engine import optimizer
from trainer.export import example
from trainer.model.freeze import FreezeReport
from trainer.run.exits import EndKind
from trainer.run.measures import score_name
from trainer.run.paid import paid
from trainer.run.run_folder import RunDir, read_lines
from trainer.run.settings.adapter import AdapterSpec
from trainer.run.spec import NodeJob

UNFINISHED = {EndKind.BUDGET_REACHED: "budget", EndKind.DEADLINE_REACHED: "deadline"}
NUM_SAMPLES = 4
"""Answers that the card shows."""
PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "tokenizers")

TEMPLATE = """\
---
base_model: {{ quoted(base) }}
{% if datasets %}datasets:
{% for name in datasets %}- {{ quoted(name) }}
{% endfor %}{% endif %}library_name: {{ "peft" if adapter and not adapter.merged else "transformers" }}
pipeline_tag: text-generation
tags:
- dolphin
{% if adapter %}- {{ adapter.type }}
{% endif %}---

# {{ name }}

{{ name }} is {{ base }}, {{ verb }} on {{ "{:,}".format(conversations) }} conversations
({{ "{:,}".format(tokens) }} tokens, {{ "{:,}".format(trained_tokens) }} of them trained on).
{%- if final_loss is not none %} Its loss on held-out conversations is {{ "%.4f" | format(final_loss) }}.{% endif %}
{%- if weights_step %} These are the weights after step {{ weights_step }}.{% endif %}

{% if unfinished %}
**Not trained to its end**: the job's {{ unfinished }} ended it at step {{ step }} of {{ steps }}.
{% endif %}
## Prompt format
{% if example %}
A conversation of the training data as the model read it:

{{ fence }}
{{ example.text }}
{{ fence }}
{% endif %}
The tokenizer in this folder holds the template: `tokenizer.apply_chat_template(messages, add_generation_prompt=True)`.
{% if example and example.end %}An answer ends with `{{ example.end }}`.
{% endif %}
{% if adapter %}## Adapter

{{ adapter.text }}
{% endif %}
## Base model and data

| | |
|---|---|
| base model | {{ base }}{% if revision %} ({{ revision }}){% endif %} |
| parameters | {{ "{:,}".format(parameters) }} |
| trained parameters | {{ "{:,}".format(trained_parameters) }} ({{ "%.1f" | format(100 * trained_parameters / parameters) }}%) |
| sequence length | {{ "{:,}".format(sequence_length) }}{% if packing %}, packed{% endif %} |
{% for source in sources -%}
| data | {{ source }} |
{% endfor %}
## Hyperparameters

| | |
|---|---|
{% for key, value in hyperparameters -%}
| {{ key }} | {{ value }} |
{% endfor %}
## Training results

| Training loss | Epoch | Step | Validation loss |{% for name in other_sets + scores %} {{ name }} |{% endfor %}
|---:|---:|---:|---:|{% for name in other_sets + scores %}---:|{% endfor %}
{% for row in results -%}
| {{ row.loss }} | {{ "%.4f" | format(row.epoch) }} | {{ row.step }} | {{ number(row.eval_loss) }} |{% for name in other_sets + scores %} {{ number(row[name]) }} |{% endfor %}
{% endfor %}
{% if samples %}## Samples

What it answers after step {{ samples[0].step }}:

{% for sample in samples %}{{ fence_around(sample.question ~ sample.answer) }}
{{ sample.question }}
→ {{ sample.answer }}
{{ fence_around(sample.question ~ sample.answer) }}

{% endfor %}
{% endif -%}
<details><summary>Configuration</summary>

{{ fence_around(configuration) }}yaml
{{ configuration }}{{ fence_around(configuration) }}

</details>
{% if costs %}
## Cost

| | machines, US dollars |
|---|---|
{% for what, cost in costs -%}
| {{ what }} | {{ cost }} |
{% endfor %}{% endif %}
## Framework versions

- attention: {{ kernel }}
{% for package, version in versions -%}
- {{ package }} {{ version }}
{% endfor -%}
"""


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


def render(
    job: NodeJob, tokenizer: PreTrainedTokenizerBase, plan: DataPlan, made: Made, adapter: str | None = None
) -> str:
    """The card's text. Reads the run's metrics.jsonl for the table of results. `adapter` tells how an adapter is made and
    loaded."""
    report, world_size, kernel, weights_step, step, limit = made
    spec = job.spec
    shown = example.of_run(job.run_dir, tokenizer)
    results = training_results(RunDir(job.run_dir))
    sources = [shorten(source.path) for source in spec.data.sources]
    facts: dict[str, Any] = {
        "name": spec.name,
        "quoted": quoted,
        "number": number,
        "fence_around": example.fence_around,
        "base": shorten(spec.model.base),
        "revision": spec.model.revision,
        "verb": _verb(job),
        "adapter": None
        if spec.train.adapter is None
        else {
            "type": spec.train.adapter.type,
            "merged": spec.export.merged,
            "text": adapter,
        },
        "datasets": [s.path.removeprefix("hf://") for s in spec.data.sources if s.path.startswith("hf://")],
        "conversations": plan.num_conversations,
        "tokens": plan.tokens_per_epoch,
        "trained_tokens": plan.trained_tokens_per_epoch,
        "final_loss": next((row["eval_loss"] for row in reversed(results) if row["step"] <= weights_step), None),
        "weights_step": weights_step if weights_step != plan.total_steps else None,
        "other_sets": [f"{entry.name}/loss" for entry in (spec.data.validation or ())[1:]],
        "scores": [score_name(metric) for metric in spec.evaluate.metrics],
        "samples": samples_of(RunDir(job.run_dir), weights_step),
        "example": shown,
        "fence": example.fence_around(shown.text) if shown is not None else "",
        "parameters": report.num_parameters,
        "trained_parameters": report.num_trainable,
        "sequence_length": spec.data.sequence_length,
        "packing": spec.data.packing,
        "sources": sources,
        "kernel": kernel,
        "hyperparameters": hyperparameters(job, plan, world_size),
        "results": results,
        "configuration": configuration(job),
        "steps": plan.total_steps,
        "step": step,
        "unfinished": None if limit is None else UNFINISHED[limit],
        "costs": costs_of(job),
        "versions": [(package, importlib.metadata.version(package)) for package in PACKAGES],
    }
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(TEMPLATE).render(facts)


def costs_of(job: NodeJob) -> list[tuple[str, str]]:
    """Planned beside paid until now; nothing where the run costs nothing."""
    limits = job.limits
    bill = paid(RunDir(job.run_dir), limits, time.time())
    if not bill.usd and not limits.planned_usd:
        return []
    rows = [("planned", limits.planned_hours, limits.planned_usd), ("paid", bill.hours, bill.usd)]
    return [
        (what, f"{hours:,.1f} h, {'price not known' if usd is None else f'${usd:,.2f}'}")
        for what, hours, usd in rows
        if hours is not None
    ]


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


def number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"


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
        ("epochs", f"{plan.epoch_of(plan.total_steps):.2f}"),
        ("steps", plan.total_steps),
        ("global batch", f"{job.global_batch} sequences"),
        ("micro batch", t.micro_batch),
        ("ranks", world_size),
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
    dump.pop("track", None)
    dump.get("checkpoint", {}).pop("store", None)
    return yaml.safe_dump(_published(dump), sort_keys=False, allow_unicode=True, width=110)


def shorten(path: str) -> str:
    """The last part of a local path; hub ids as they are, URLs without a name, a password or a query. One line."""
    if "://" in path:
        parts = urlsplit(path)
        path = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    elif path.startswith(("/", "~", "./", "../")):
        path = PurePosixPath(path).name
    return " ".join("".join(c if c.isprintable() else " " for c in path).split())


def quoted(value: str) -> str:
    """As a value of the front matter: what is no plain name cannot end its line there, or its type."""
    return value if re.fullmatch(r"[A-Za-z][\w./-]*", value) else json.dumps(value)


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
