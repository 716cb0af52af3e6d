"""axolotl's keys for adapters: LoRA and QLoRA, and a base held in fewer bits."""

from __future__ import annotations

from typing import Any

from launcher.jobfile.axolotl.account import Conversion
from launcher.jobfile.axolotl.shapes import number

INITS = {True: "default", "gaussian": None, "pissa": "pissa", "olora": "olora", "eva": "eva", "true": "default"}
"""peft_init_lora_weights -> train.adapter.init; None for one that begins as `default` does, from other random numbers."""


def convert_adapter(out: Conversion, stated: dict[str, Any]) -> None:
    """`adapter` and what belongs to it; a quantised base without one is an error, as its weights could not be trained."""
    kind = stated.get("adapter")
    if not kind:
        for key in ("load_in_8bit", "load_in_4bit"):
            if stated.get(key):
                out.fail(key, "a quantised base is not trained; remove it, or train adapters beside it: adapter: qlora")
        return
    if kind not in ("lora", "qlora"):
        out.fail("adapter", f"{kind} is not done; write lora or qlora", "train.adapter.type")
        return
    bits = _bits(out, stated, kind)
    out.put("train.adapter.type", bits, "adapter")
    for key, setting in (("lora_r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout")):
        if key in stated:
            out.put(f"train.adapter.{setting}", number(stated[key]), key)
    if stated.get("lora_r") is None:
        out.fail("lora_r", "is missing; state the rank", "train.adapter.rank")
    _target(out, stated)
    if stated.get("lora_modules_to_save"):
        out.put("train.adapter.modules_to_save", _words(stated["lora_modules_to_save"]), "lora_modules_to_save")
    for key, setting in (("peft_use_dora", "dora"), ("peft_use_rslora", "rslora")):
        if stated.get(key):
            out.put(f"train.adapter.{setting}", True, key)
    layers = stated.get("peft_layers_to_transform")
    if layers is not None:
        out.put("train.adapter.layers", layers if isinstance(layers, list) else [layers], "peft_layers_to_transform")
    init = stated.get("peft_init_lora_weights")
    if init in INITS:
        out.put("train.adapter.init", INITS[init] or "default", "peft_init_lora_weights")
    elif init is not None:
        out.fail(
            "peft_init_lora_weights",
            f"{init!r} is not done; remove it, or write pissa, olora or eva",
            "train.adapter.init",
        )
    if stated.get("peft_trainable_token_indices"):
        out.put("train.adapter.trainable_tokens", True, "peft_trainable_token_indices", "the rows of the tokens that the job adds, whatever their numbers")  # fmt: skip


def _bits(out: Conversion, stated: dict[str, Any], kind: str) -> str:
    """`qlora` where the base is held in 4 bits."""
    if stated.get("load_in_8bit"):
        out.put("train.adapter.type", kind, "load_in_8bit", "the base stays in bf16, which is exact and takes twice the memory of 8 bits; adapter: qlora holds it in 4")  # fmt: skip
    ours = {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "nf4"}
    for name, value in (stated.get("bnb_config_kwargs") or {}).items():
        if ours.get(name) == value:
            out.skip("bnb_config_kwargs", "NF4 with double quantisation is what is done here")
        else:
            out.fail(
                "bnb_config_kwargs",
                f"{name}: {value} is not done; the base is held as NF4 with double quantisation; remove it",
            )
    if stated.get("load_in_4bit"):
        out.put("train.adapter.type", "qlora", "load_in_4bit", "NF4 with double quantisation")
        return "qlora"
    return kind


def _target(out: Conversion, stated: dict[str, Any]) -> None:
    linear, names = stated.get("lora_target_linear"), stated.get("lora_target_modules")
    if linear or names == "all-linear":
        key = "lora_target_linear" if linear else "lora_target_modules"
        out.put("train.adapter.target", "all-linear", key)
        if linear and names and names != "all-linear":
            out.skip("lora_target_modules", "lora_target_linear takes every linear layer")
    elif isinstance(names, str):
        out.put("train.adapter.target", names, "lora_target_modules", "a regular expression")
    elif names:
        out.put("train.adapter.target", list(names), "lora_target_modules")
    else:
        out.fail(
            "lora_target_modules",
            "is missing, and lora_target_linear is off: name the layers to adapt",
            "train.adapter.target",
        )


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
