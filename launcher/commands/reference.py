"""`dolphin schema --keys`: every key of job.yaml with type, default, meaning and an example; docs/job.md is what it prints.

Owns the examples and the words for types. Keys, defaults and meanings are the models', through their schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.commands.schema import job_schema
from launcher.config.yaml_lines import inline_yaml

ABOUT = """\
# job.yaml, key by key

`dolphin schema --keys` writes this page from the models that read a job, and a test holds it against them. The smallest job:

    name: my-model
    model: {base: Qwen/Qwen3-0.6B-Base}
    data: {sources: [{path: my-chats.jsonl}]}

An unknown key, a wrong type and two settings that contradict each other are errors: `dolphin validate` tells all of them, each
with its line. `dolphin launch --set train.max_steps=20` states a key for once, `dolphin init` writes a job with every key in it,
and editors complete and check one by [job.schema.json](job.schema.json). Paths are relative to the job's file.
`$NAME` and `${NAME}` are not expanded, and refused where a name or a path stands: pass what depends on the machine with `--set`.
In `notify` alone, `${NAME}` names a secret.
Keys at the top that begin with `x-` are your own, for YAML anchors that other keys take up.
"""

EXAMPLES: dict[str, str] = {
    "name": "my-model",
    "model.base": "meta-llama/Meta-Llama-3.1-8B",
    "model.revision": "main",
    "model.weights_prefix": "_orig_mod.",
    "model.attention_dropout": "0.0",
    "model.router_loss": "0.001",
    "model.tokenizer": "./tokenizer",
    "model.chat_template": "chatml",
    "model.special_tokens.bos_token": "<|begin_of_text|>",
    "model.special_tokens.eos_token": "<|im_end|>",
    "model.special_tokens.pad_token": "<|finetune_right_pad_id|>",
    "model.special_tokens.unk_token": "<unk>",
    "model.added_tokens": "[<|im_start|>]",
    "data.sources": "[{path: chats.jsonl}, {path: hf://mlabonne/FineTome-100k}]",
    "data.sources.path": "s3://my-bucket/chats/*.parquet",
    "data.sources.format": "sharegpt",
    "data.sources.fields": "{prompt: question, response: answer}",
    "data.sources.split": "train_sft",
    "data.sources.subset": "en",
    "data.sources.files": "[data/part-*.jsonl]",
    "data.sources.field": "conversations",
    "data.sources.weight": "0.5",
    "data.sources.samples": "20000",
    "data.sources.filter": "score > 4",
    "data.sources.shuffle_seed": "7",
    "data.validation_fraction": "0.02",
    "data.validation_count": "500",
    "data.validation": "[{name: held-out, fraction: 0.01}, {name: mine, path: test.jsonl}]",
    "data.validation.name": "mine",
    "data.validation.path": "test.jsonl",
    "data.validation.fraction": "0.02",
    "data.validation.count": "500",
    "data.validation.format": "sharegpt",
    "data.validation.fields": "{prompt: question, response: answer}",
    "data.validation.split": "test_sft",
    "data.validation.subset": "en",
    "data.validation.field": "conversations",
    "data.validation.filter": "score > 4",
    "data.sequence_length": "8192",
    "data.train_on_reasoning": "last",
    "data.max_bad_fraction": "0.001",
    "data.workers": "8",
    "train.epochs": "3",
    "train.max_steps": "1000",
    "train.micro_batch": "2",
    "train.kernels": "true",
    "train.compile": "auto",
    "train.global_batch": "256",
    "train.accumulation": "16",
    "train.learning_rate": "5e-6",
    "train.betas": "[0.9, 0.95]",
    "train.epsilon": "1e-6",
    "train.weight_decay": "0.1",
    "train.max_grad_norm": "0.5",
    "train.warmup_steps": "100",
    "train.warmup_ratio": "0.03",
    "train.min_lr_ratio": "0.1",
    "train.unfrozen": "[^lm_head.weight$, model.norm, 'layers.(30|31).']",
    "train.unfrozen.spectrum": "{snr: snr.json, top: 25%}",
    "train.unfrozen.spectrum.snr": "snr.json",
    "train.unfrozen.spectrum.top": "25%",
    "train.unfrozen.patterns": "[model.norm, embed_tokens]",
    "train.adapter": "{type: lora, rank: 64, alpha: 32, target: all-linear}",
    "train.adapter.type": "qlora",
    "train.adapter.rank": "32",
    "train.adapter.alpha": "64",
    "train.adapter.dropout": "0.05",
    "train.adapter.target": "[q_proj, k_proj, v_proj, o_proj]",
    "train.adapter.exclude": "[down_proj]",
    "train.adapter.layers": "[16, 17, 18, 19]",
    "train.adapter.modules_to_save": "[embed_tokens, lm_head]",
    "train.loss_chunk": "1024",
    "train.evaluate_every": "200",
    "train.evaluate_every.epochs": "0.25",
    "train.gradient_checkpointing.every": "2",
    "train.stop": "{metric: eval_loss, patience: 3, min_delta: 0.0}",
    "train.stop.metric": "mine/loss",
    "train.stop.patience": "5",
    "train.stop.min_delta": "0.001",
    "train.stop.direction": "lower",
    "train.activation_offloading": "true",
    "train.log_every": "10",
    "train.seed": "7",
    "checkpoint.store": "s3://my-bucket/runs",
    "checkpoint.every": "{minutes: 30}",
    "checkpoint.every.steps": "200",
    "checkpoint.every.minutes": "30",
    "checkpoint.every.epochs": "0.5",
    "checkpoint.keep": "3",
    "checkpoint.keep_best": "eval_loss",
    "checkpoint.keep_best.metric": "exact_match",
    "checkpoint.keep_best.direction": "higher",
    "checkpoint.preemptions_per_day": "12",
    "checkpoint.max_restarts": "0",
    "evaluate.prompts": "prompts.jsonl",
    "evaluate.questions": "8",
    "evaluate.questions_of": "mine",
    "evaluate.max_new_tokens": "128",
    "evaluate.temperature": "0.7",
    "evaluate.top_p": "0.9",
    "evaluate.metrics": "[exact_match, scores.py:polite]",
    "export.gguf": "[f16, q8_0, q4_k_m]",
    "evaluate.tasks": "[leaderboard, my-task.yaml]",
    "evaluate.limit": "100",
    "evaluate.max_minutes": "60",
    "push": "{repo: my-org/my-model}",
    "push.repo": "my-org/my-model",
    "card.description": "'For my cooking show.'",
    "card.license": "llama3.1",
    "card.language": "[en, de]",
    "card.tags": "[cooking]",
    "track.wandb": "{project: my-model}",
    "track.wandb.project": "my-model",
    "track.wandb.entity": "my-team",
    "track.wandb.name": "second-try",
    "track.mlflow": "{tracking_uri: file:///tmp/mlflow}",
    "track.mlflow.tracking_uri": "http://mlflow.internal:5000",
    "track.mlflow.experiment": "chat-models",
    "on": "docker",
    "resources.accelerators": "L40S:8",
    "resources.num_nodes": "2",
    "resources.ranks_per_node": "2",
    "resources.infra": "[aws, gcp/us-central1]",
    "resources.regions": "[us-east-1, eu-south-2]",
    "resources.image": "registry.internal/me/dolphin:1",
    "resources.disk_gb": "1024",
    "resources.disk_tier": "best",
    "resources.memory_gb": "256",
    "resources.max_hourly_cost": "15",
    "resources.max_upload_gb": "60",
    "resources.price_per_hour": "1.20",
    "deadline": "72h",
    "budget": "450",
    "notify": "['${SLACK_WEBHOOK}', 'https://hooks.example.org/runs']",
    "env": "{NCCL_DEBUG: INFO}",
    "secrets": "[HF_TOKEN, WANDB_API_KEY]",
}
"""Dotted key to a value as YAML, for every key but groups with defaults, switches and choices: those show another choice."""


def keys_command() -> int:
    """Print the page. Returns the exit code."""
    print(keys_text(), end="")
    return 0


def keys_text() -> str:
    """What docs/job.md holds."""
    schema = job_schema()
    return ABOUT + "".join(_section(schema, name, group) for name, group in _groups(schema, "", schema))


def example_of(dotted: str, setting: dict[str, Any]) -> str | None:
    """A value for a key as YAML; None for a group whose keys are shown. KeyError, with what to do, where none is known."""
    if dotted in EXAMPLES:
        return EXAMPLES[dotted]
    if setting.get("type") == "boolean":
        return inline_yaml(not setting["default"])
    choices = _choices(setting)
    if choices:
        return inline_yaml(next((choice for choice in choices if choice != setting["default"]), choices[0]))
    if any("$ref" in part for part in _parts(setting)):
        return None
    raise KeyError(f"EXAMPLES in launcher/commands/reference.py has no example of {dotted}: add one")


def _groups(schema: dict[str, Any], prefix: str, group: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every group with its dotted name, the top first, each before its own."""
    yield prefix, group
    for name, setting in group["properties"].items():
        for part in _parts(setting):
            inner = part.get("items", part)
            if isinstance(inner, dict) and "$ref" in inner:
                yield from _groups(schema, f"{prefix}.{name}".lstrip("."), _definition(schema, inner))


def _section(schema: dict[str, Any], prefix: str, group: dict[str, Any]) -> str:
    title = f"## `{prefix}`" if prefix else "## At the top"
    rows = ["| key | type | default | meaning | example |", "|---|---|---|---|---|"]
    required = group.get("required", [])
    for name, setting in group["properties"].items():
        dotted = f"{prefix}.{name}".lstrip(".")
        example = example_of(dotted, setting)
        cells = (
            f"`{name}`",
            _type(setting, dotted),
            "**required**" if name in required else _default(setting),
            setting["description"],
            "" if example is None else f"`{name}: {example}`",
        )
        rows.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return f"\n{title}\n\n" + "\n".join(rows) + "\n"


def _type(setting: dict[str, Any], dotted: str) -> str:
    words = [_type_of_one(part, dotted) for part in _parts(setting)]
    return "; ".join(dict.fromkeys(words))


def _type_of_one(part: dict[str, Any], dotted: str) -> str:
    if "$ref" in part:
        return f"[keys](#{dotted.replace('.', '')})"
    choices = _choices(part)
    if choices:
        return ", ".join(f"`{inline_yaml(choice)}`" for choice in choices)
    kind = part["type"]
    if kind == "array":
        items = part["items"]
        if isinstance(items, list):
            return f"list of {len(items)}, each {_type_of_one(items[0], dotted)}"
        return f"list of {_type_of_one(items, dotted)}"
    if kind == "object":
        return "text: text, ..."
    return {"string": "text", "boolean": "`true`, `false`", "integer": "whole number", "number": "number"}[
        kind
    ] + _range(part)


def _range(part: dict[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return "".join(f", {word} {part[bound]:g}" for bound, word in words.items() if bound in part)


def _parts(setting: dict[str, Any]) -> list[dict[str, Any]]:
    """What a setting may be, without null."""
    return [part for part in setting.get("anyOf", [setting]) if part.get("type") != "null"]


def _choices(part: dict[str, Any]) -> list[Any]:
    return [part["const"]] if "const" in part else part.get("enum", [])


def _default(setting: dict[str, Any]) -> str:
    default = setting.get("default")
    if isinstance(default, dict):
        return "those of its keys"
    return "not set" if default in (None, []) else f"`{inline_yaml(default)}`"


def _definition(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return found
