"""The model card's text: README.md of a model folder, from card.json beside it and, once there is one, results.json.

Owns what stands where in the card, its front matter and its tables. Pure but for the files of that one folder: a card is written anew
wherever the folder is, when it is evaluated or converted, without the run. Refuses to know runs, models and torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import yaml

CARD, RESULTS, FACTS = "README.md", "results.json", "card.json"
BEGIN, END = "<!-- evaluation: written by dolphin -->", "<!-- evaluation: end -->"
"""Around the one section that is written anew in a card that its author has changed by hand."""
LATER: dict[str, Any] = {
    "weights_step": None, "last_step": None, "steps": None, "unfinished": None, "other_sets": [], "scores": [], "samples": [],
    "axolotl": "",
}  # fmt: skip
"""Facts that the card.json of a model lacks which an older dolphin trained; its card is written anew all the same."""

TEMPLATE = """\
# {{ name }}
{% if description %}
{{ description }}
{% endif %}
{{ name }} is {{ base }}, {{ verb }} on {{ "{:,}".format(conversations) }} conversations
({{ "{:,}".format(tokens) }} tokens, {{ "{:,}".format(trained_tokens) }} of them trained on).
{%- if final_loss is not none %} Its loss on held-out conversations is {{ "%.4f" | format(final_loss) }}.{% endif %}
{%- if weights_step %} These are the weights after step {{ weights_step }}.{% endif %}

{% if unfinished %}
**Not trained to its end**: the job's {{ unfinished }} ended it at step {{ last_step }} of {{ steps }}.
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
{% endif %}{% if evaluation %}{{ evaluation }}
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
{% if data -%}
| source | rows | conversations | held out | left out | tokens | trained tokens |
|---|---:|---:|---:|---:|---:|---:|
{% for row in data -%}
| {{ row.source }} | {{ "{:,}".format(row.rows) }} | {{ "{:,}".format(row.conversations) }} | {{ "{:,}".format(row.held_out) }} |
{{- " {:,}".format(row.left_out) }} | {{ "{:,}".format(row.tokens) }} | {{ "{:,}".format(row.trained_tokens) }} |
{% endfor %}
{% endif -%}
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
{% if sample -%}
A held-out question, and what the model answers:

{{ sample_fence }}
question  {{ sample.question }}
answer    {{ sample.answer }}
expected  {{ sample.expected }}
{{ sample_fence }}

{% endif -%}
{% if run -%}
## The run

| | |
|---|---|
{% for key, value in run -%}
| {{ key }} | {{ value }} |
{% endfor %}
{% endif -%}
<details><summary>Configuration</summary>

{{ fence_around(configuration) }}yaml
{{ configuration }}{{ fence_around(configuration) }}

</details>
{% if axolotl %}
<details><summary>The same as an axolotl configuration, from which it was made</summary>

{{ fence_around(axolotl) }}yaml
{{ axolotl }}{{ fence_around(axolotl) }}

</details>
{% endif %}
## Framework versions

- attention: {{ kernel }}
{% for package, version in versions -%}
- {{ package }} {{ version }}
{% endfor -%}
"""


def write(folder: Path) -> None:
    """README.md of the model folder, from what is in the folder now. A card that its author has changed by hand since keeps
    every word; its section of evaluations alone, and its model-index, are written anew."""
    facts = read_json(folder / FACTS)
    results = read_json(folder / RESULTS)
    card = folder / CARD
    if not facts:
        return
    text = render(facts, results)
    if card.is_file() and facts.get("written") not in (None, _digest(card.read_text(encoding="utf-8"))):
        text = _into(card.read_text(encoding="utf-8"), facts, results)
    else:
        facts["written"] = _digest(text)
        (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    card.write_text(text, encoding="utf-8", errors="replace")


def render(facts: dict[str, Any], results: dict[str, Any]) -> str:
    """The whole card. `facts` are card.json's, `results` results.json's, empty where there are none."""
    sample = facts.get("sample")
    given = (
        LATER
        | facts
        | {
            "evaluation": evaluation_section(results),
            "fence_around": fence_around,
            "number": lambda value: f"{value:.4f}" if isinstance(value, int | float) else "-",
            "fence": fence_around(facts["example"]["text"]) if facts["example"] else "",
            "sample_fence": fence_around(" ".join(map(str, sample.values()))) if sample else "",
        }
    )
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    return front_matter(facts, results) + "\n" + environment.from_string(TEMPLATE).render(given)


def front_matter(facts: dict[str, Any], results: dict[str, Any]) -> str:
    """What the hub reads of a card, between its lines of dashes."""
    adapter = facts["adapter"]
    values = {
        "license": facts["license"],
        "language": facts["language"],
        "base_model": facts["base_model"],
        "datasets": facts["datasets"],
        "library_name": "peft" if adapter and not adapter["merged"] else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dolphin", *([adapter["type"]] if adapter else []), *facts["tags"]],
        "model-index": model_index(facts, results),
    }
    kept = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False)}---\n"


def model_index(facts: dict[str, Any], results: dict[str, Any]) -> list[dict[str, Any]]:
    """The results in the hub's form: one entry a task, or the held-out loss where no task was evaluated."""
    task = {"type": "text-generation", "name": "Text Generation"}
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in results.get("rows", []):
        if isinstance(row.get("value"), int | float):
            by_task.setdefault(row["task"], []).append(
                {"type": row["metric"], "value": row["value"], "name": row["metric"]}
            )
    found = [
        {"task": task, "dataset": {"name": name, "type": name}, "metrics": metrics} for name, metrics in by_task.items()
    ]
    if not found and facts["final_loss"] is not None:
        loss = {"type": "loss", "value": facts["final_loss"], "name": "validation loss"}
        found = [{"task": task, "dataset": {"name": "held-out conversations", "type": "held-out"}, "metrics": [loss]}]
    return [{"name": facts["name"], "results": found}] if found else []


def evaluation_section(results: dict[str, Any]) -> str:
    """The table of evaluations in a fold, base beside tuned where both were evaluated; empty where there are none."""
    if not results.get("rows"):
        return ""
    lines = [
        BEGIN,
        "## Evaluation",
        "",
        f"With lm-evaluation-harness {results.get('harness', '')}{_limit(results)}:".replace("  ", " "),
        "",
    ]
    groups = [row for row in results["rows"] if row.get("is_group")]
    tables = [*table(results["rows"]), "", *(table(groups, "Groups") + [""] if groups else [])]
    lines += ["<details><summary>Evaluation results</summary>", "", *tables, "</details>", END]
    failed = results.get("failed") or {}
    if failed:
        lines.insert(-1, "\n" + "\n".join(f"- {name} could not be evaluated: {why}" for name, why in failed.items()))
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], title: str = "Tasks") -> list[str]:
    """Lines of Markdown: task, version, filter, shots, metric, which way is better, value and standard error, and the base's
    where it is known. Tasks of a group are set in, as the harness does."""
    has_base = any(row.get("base_value") is not None for row in rows)
    head = [title, "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"]
    kinds = ["---", "------:", "------", "-----:", "------", "---", "----:", "---", "-----:"]
    if has_base:
        head, kinds = [*head, "Base", "", "Stderr"], [*kinds, "----:", "---", "-----:"]
    lines, last = ["|" + "|".join(head) + "|", "|" + "|".join(kinds) + "|"], None
    for row in rows:
        indent = (" " * (row["depth"] - 1) + " - ") if row["depth"] else ""
        is_more = row["task"] == last
        cells = [
            "" if is_more else indent + row["alias"], "" if is_more else str(row["version"]), row["filter"],
            str(row["shots"]), row["metric"], "↑" if row["higher_is_better"] else "↓",
            _number(row["value"]), "±", _number(row["stderr"]),
        ]  # fmt: skip
        if has_base:
            cells += [_number(row.get("base_value")), "±", _number(row.get("base_stderr"))]
        lines.append("|" + "|".join(cells) + "|")
        last = row["task"]
    return lines


def fence_around(text: str) -> str:
    """A Markdown fence longer than any in the text."""
    return "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _into(text: str, facts: dict[str, Any], results: dict[str, Any]) -> str:
    """A card that its author has changed, with the new evaluations in it."""
    section = evaluation_section(results)
    before, begins, rest = text.partition(BEGIN)
    if begins:
        text = before + section + rest.partition(END)[2]
    elif section:
        text = f"{text.rstrip()}\n\n{section}\n"
    head = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    if head is None:
        return text
    try:
        values = yaml.safe_load(head[1])
    except yaml.YAMLError:
        return text
    if isinstance(values, dict):
        values["model-index"] = model_index(facts, results)
        return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n{text[head.end() :]}"
    return text


def _limit(results: dict[str, Any]) -> str:
    limit = results.get("limit")
    return f", the first {limit:g} questions of each task" if limit else ""


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "N/A"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
