"""axolotl's keys for the run's name, the model, its tokenizer and template, and which parameters are trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from launcher.config.problems import Finding, key_name
from launcher.config.yaml_lines import Where
from launcher.jobfile.axolotl.account import Conversion, Mapped
from launcher.jobfile.axolotl.shapes import number
from trainer.run.chat_templates.registry import TEMPLATES


def convert_name(out: Conversion, stated: dict[str, Any]) -> None:
    key = "output_dir"
    last = Path(str(stated.get(key, ""))).name
    if last.lower() in ("", ".", "out", "output", "outputs", "model-out", "lora-out", "qlora-out", "results"):
        last = Path(str(stated.get("base_model", "model"))).name
    name = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:48].strip("-") or "model"
    if key in stated:
        out.put("name", name, key, "the model is left in the run's folder; `dolphin fetch` copies it")
    else:
        out.assume("name", name, "after the base model")


def convert_model(out: Conversion, stated: dict[str, Any]) -> None:
    if "base_model" not in stated:
        out.fail("base_model", "is missing; name the base model")
    for key, setting in (
        ("base_model", "base"),
        ("revision_of_model", "revision"),
        ("model_revision", "revision"),
        ("tokenizer_config", "tokenizer"),
        ("trust_remote_code", "trust_remote_code"),
    ):
        if key in stated:
            out.put(f"model.{setting}", stated[key], key)
    if stated.get("reinit_weights"):
        out.put("model.init", "random", "reinit_weights")
    tokens, added = stated.get("special_tokens") or {}, _tokens(out, stated)
    if isinstance(stated.get("tokens"), dict) and isinstance(tokens, dict):  # the older form of special_tokens
        tokens = {**stated["tokens"], **tokens}
    if isinstance(tokens, dict):
        known = {
            name: text
            for name, text in tokens.items()
            if name in ("bos_token", "eos_token", "pad_token", "unk_token") and text is not None
        }
        for name in tokens.keys() - known.keys() - {"additional_special_tokens"}:
            out.fail("special_tokens", f"{name} is not set here; write the token under tokens")
        if known:
            out.put("model.special_tokens", known, "special_tokens" if "special_tokens" in stated else "tokens")
        added += tokens.get("additional_special_tokens") or []
    if added:
        out.put("model.added_tokens", added, "tokens" if "tokens" in stated else "special_tokens")
    _attention(out, stated)
    _configuration(out, stated.get("model_config") or {})


def _configuration(out: Conversion, changes: dict[str, Any]) -> None:
    """`model_config`: of what it changes in the base's configuration, the weight of the experts' load-balancing loss."""
    weight = changes.get("router_aux_loss_coef")
    for name, value in changes.items():
        if name == "output_router_logits":
            remark = "the load-balancing loss counts with the base's own weight" if value and weight is None else ""
            if value and weight is None:
                out.mapped.append(Mapped("model_config", "model.router_loss", remark))
            elif not value:
                out.put("model.router_loss", 0, "model_config", "no load-balancing loss")
        elif name == "router_aux_loss_coef":
            if changes.get("output_router_logits") is not False:
                out.put("model.router_loss", number(value), "model_config")
        else:
            out.fail(
                "model_config",
                f"{name} is not changed here; put it into config.json of a copy and name that as base_model",
            )


def _tokens(out: Conversion, stated: dict[str, Any]) -> list[str]:
    """`tokens`: a word, words, or groups with the word as `content`."""
    tokens = stated.get("tokens") or []
    if isinstance(tokens, dict):
        return []
    listed = tokens if isinstance(tokens, list) else [tokens]
    words = [item.get("content") if isinstance(item, dict) else item for item in listed]
    if not all(isinstance(word, str) for word in words):
        out.fail("tokens", "must be a list of words", "model.added_tokens")
    return [word for word in words if isinstance(word, str)]


def _attention(out: Conversion, stated: dict[str, Any]) -> None:
    named = {
        key: value if (value := stated.get(key)) in ("sdpa", "eager") else "auto"
        for key in ("attn_implementation", "attention")
    }
    for key, kind in (
        ("flash_attention", "auto"),
        ("sdp_attention", "sdpa"),
        ("eager_attention", "eager"),
        ("xformers_attention", "auto"),
        ("flex_attention", "auto"),
        *named.items(),
    ):
        if stated.get(key):
            remark = "auto takes flash-attn where it is installed, else torch's own" if kind == "auto" else ""
            out.put("model.attention", kind, key, remark)


def convert_template(out: Conversion, stated: dict[str, Any], asked: list[tuple[Where, str]], plain_text: bool) -> None:
    """`asked` are the templates that datasets name; one renders them all."""
    if stated.get("chat_template_jinja"):
        asked = [*asked, (("chat_template_jinja",), str(stated["chat_template_jinja"]))]
    elif stated.get("chat_template") and stated["chat_template"] != "jinja":
        asked = [*asked, (("chat_template",), str(stated["chat_template"]))]
    meant: dict[str, Where] = {}
    for where, name in asked:
        is_own = name == "tokenizer_default" or name.startswith("tokenizer_default_fallback_")
        template = "tokenizer" if is_own else name
        if template not in meant:
            meant[template] = where
            out.mapped.append(Mapped(key_name(where), "model.chat_template", "the tokenizer's own" if is_own else ""))
        else:
            out.mapped.append(Mapped(key_name(where), "model.chat_template", ""))
    if len(meant) > 1:
        first, second = list(meant)[:2]
        message = f"one template renders every dataset, but {key_name(meant[first])} asks for {first}; make them equal"
        out.errors.append(Finding(meant[second], message))
    if meant:
        name, where = next(iter(meant.items()))
        out.origins[("model", "chat_template")] = where
        is_taken = (
            name == "tokenizer" or name in TEMPLATES or "{" in name or name.endswith((".jinja", ".jinja2", ".j2"))
        )
        out.set("model.chat_template", name if is_taken else "tokenizer")
        if not is_taken:
            message = (
                f"dolphin has no template {name!r}: write tokenizer_default where the tokenizer has its own, name a .jinja "
                f"file, or take one of {', '.join(TEMPLATES)}"
            )
            out.fail_at(where, message, "model.chat_template")
    elif not plain_text:
        out.assume("model.chat_template", "tokenizer", "none is named; a base model without one needs chatml")


def convert_unfrozen(out: Conversion, stated: dict[str, Any]) -> None:
    ranges = [p for p in stated.get("unfrozen_parameters") or [] if re.search(r"\[\d*:\d*\]$", p)]
    if ranges:
        out.fail(
            "unfrozen_parameters", f"{ranges[0]!r}: a range of rows is not trained by itself; name the whole parameter"
        )
    if stated.get("unfrozen_parameters"):
        out.put("train.unfrozen", stated["unfrozen_parameters"], "unfrozen_parameters")
    spectrum = False
    for plugin in stated.get("plugins") or []:
        name = str(plugin).rpartition(".")[2]
        if name == "SpectrumPlugin":
            spectrum = True
        elif name in ("LigerPlugin", "CutCrossEntropyPlugin", "KernelsPlugin", "SwanLabPlugin", "ExpertParallelPlugin"):
            out.skip(
                "plugins",
                f"{name}: it changes speed or bookkeeping, not the result; train.kernels takes fused kernels by itself, loss and trackers are dolphin's own",
            )
        else:
            out.fail("plugins", f"{plugin} cannot be loaded here; remove it")
    if spectrum:
        share = float(stated.get("spectrum_top_fraction", 0.5))
        top = f"{share * 100 if share <= 1 else share:g}%"
        snr = str(stated.get("spectrum_model_name") or stated.get("base_model"))
        patterns = ["^lm_head.weight$", "^model.embed_tokens.weight$"]
        out.put(
            "train.unfrozen",
            {"spectrum": {"snr": snr, "top": top}, "patterns": patterns},
            "plugins",
            "Spectrum's choice by signal-to-noise ratio, the head and the embeddings",
        )
