"""Configuration and tokenizer files that older tools read as well: transformers 4, and what is built on it or beside it.

transformers 5 moves the rotary settings into `rope_parameters` and names every tokenizer `TokenizersBackend`; a reader
of before falls back to a theta of 10,000 in silence, or stops. Here the older names stand beside the newer ones, and what
the base's own files say is kept. What is written is read again: where it does not read as the same, the newer form alone
stays. Owns no weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from trainer.export import base_files
from trainer.export.telling import guarded, warn
from trainer.run.settings.model import ModelSpec

NOT_CARRIED = {"auto_map", "quantization_config", "transformers_version", "name_or_path", "dtype", "torch_dtype"}
"""Keys of the base's config.json that say nothing of the export."""
PRIVATE_TOKENIZER_KEYS = ("is_local", "local_files_only", "backend")
"""How transformers 5 happened to load the tokenizer: no fact about it."""
CARRIED_TOKENIZER_KEYS = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "legacy",
    "sp_model_kwargs",
    "use_default_system_prompt",
)
NEW_TOKENIZER_CLASS, PLAIN_TOKENIZER_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
THETA_NAMES = {"gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base"}
FRACTION_NAMES = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}
"""Families whose older configurations call theta and the rotated share of a head otherwise."""
PROBES = ("Hello  world,\n\n\tdon't 1234 naïve 🐬 def f(x):", " leading and trailing ", "你好")


def write_config(config: PretrainedConfig, folder: Path, spec: ModelSpec) -> None:
    """config.json of the export."""
    config.save_pretrained(folder)
    path = folder / base_files.CONFIG
    newer = path.read_text(encoding="utf-8")
    base = base_files.json_of(spec.base, base_files.CONFIG, spec.revision)
    older = with_older_names(json.loads(newer), config.to_dict(), base)
    for alias, name in config.attribute_map.items():  # num_experts and num_local_experts, for one
        if alias not in older and isinstance(older.get(name), int | float):
            older[alias] = older[name]
    path.write_text(_as_json(older), encoding="utf-8")
    try:
        again = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
        differ = _differences(config.to_dict(), again.to_dict())
    except Exception as error:  # a class of the model's own may raise anything
        differ = [f"it does not load ({str(error).splitlines()[0] if str(error) else type(error).__name__})"]
    if differ:
        path.write_text(newer, encoding="utf-8")
        warn(f"config.json is written for transformers 5 alone: with the older names beside, {differ[0]}")


def with_older_names(written: Mapping[str, Any], full: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the older names beside the newer ones.

    `written` is what transformers 5 writes (what equals its defaults is left out), `full` all that it knows, `base` the
    base's own file, whose keys are kept: the defaults of other versions may be others.
    """
    out = dict(written)
    for key, value in base.items():
        if key not in out and key not in NOT_CARRIED and not key.startswith("_"):
            out[key] = full.get(key, value)
    for key, value in written.items():
        if key.endswith("_config") and isinstance(value, dict) and isinstance(full.get(key), dict):
            inner = base.get(key)
            out[key] = with_older_names(value, full[key], inner if isinstance(inner, dict) else {})
    rope = full.get("rope_parameters")
    if isinstance(rope, dict):
        for key, value in older_rope(rope, str(full.get("model_type"))).items():
            out.setdefault(key, value)
    if out.get("dtype") is not None:
        out["torch_dtype"] = out["dtype"]
    return out


def older_rope(rope: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """`rope_parameters` under the names of transformers 4: rope_theta, rope_scaling, partial_rotary_factor, and
    rope_local_base_freq where layers with a window have a theta of their own."""
    by_layer = {key: value for key, value in rope.items() if isinstance(value, dict) and "rope_theta" in value}
    if by_layer:
        whole = by_layer.get("full_attention") or next(iter(by_layer.values()))
        out = older_rope(whole, model_type)
        local = by_layer.get("sliding_attention")
        if local is not None and local["rope_theta"] != whole["rope_theta"]:
            out["rope_local_base_freq"] = local["rope_theta"]
        return out
    out = {}
    if rope.get("rope_theta") is not None:
        out[THETA_NAMES.get(model_type, "rope_theta")] = rope["rope_theta"]
    if rope.get("partial_rotary_factor") is not None:
        out[FRACTION_NAMES.get(model_type, "partial_rotary_factor")] = rope["partial_rotary_factor"]
    kind = rope.get("rope_type", "default")
    if kind == "default":
        out["rope_scaling"] = None
    elif kind == "longrope" and model_type.startswith("phi"):  # its older configuration takes these three and no other
        out["rope_scaling"] = {
            "type": kind,
            **{key: rope[key] for key in ("short_factor", "long_factor") if key in rope},
        }
    else:
        out["rope_scaling"] = {
            key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")
        }
    return out


def write_generation_config(config: GenerationConfig, folder: Path) -> None:
    """generation_config.json. Published ones name a temperature without saying that they sample, which transformers
    refuses to write: they mean it."""
    try:
        config.save_pretrained(folder)
    except ValueError:
        config.do_sample = True
        try:
            config.save_pretrained(folder)
        except ValueError as error:
            ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            GenerationConfig(**ids).save_pretrained(folder)
            warn(f"the base's sampling settings are not written: {str(error).splitlines()[0]}")


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, spec: ModelSpec) -> None:
    """The tokenizer's files, under a class that transformers 4 knows too."""
    tokenizer.save_pretrained(folder)
    path = folder / base_files.TOKENIZER_CONFIG
    newer = json.loads(path.read_text(encoding="utf-8"))
    for key in PRIVATE_TOKENIZER_KEYS:
        newer.pop(key, None)
    name, revision = (spec.tokenizer, None) if spec.tokenizer is not None else (spec.base, spec.revision)
    base = base_files.json_of(name, base_files.TOKENIZER_CONFIG, revision)
    for settings in _tokenizer_forms(newer, base, tokenizer):
        path.write_text(_as_json(settings), encoding="utf-8")
        if _reads_as(folder, tokenizer, spec.trust_remote_code):
            break
    else:
        path.write_text(_as_json(newer), encoding="utf-8")
        warn(
            "the tokenizer is written for transformers 5 alone: under an older class name it would cut texts otherwise"
        )
    pieces = base_files.path_of(name, "tokenizer.model", revision)
    if pieces is not None and not (folder / "tokenizer.model").exists():  # what converters to other formats read
        guarded("a copy of tokenizer.model", partial(shutil.copyfile, pieces, folder / "tokenizer.model"))


def _tokenizer_forms(
    newer: Mapping[str, Any], base: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Any]]:
    """Forms of tokenizer_config.json for older readers, the one to prefer first."""
    own = dict(newer)
    extra = own.pop("extra_special_tokens", None)
    if isinstance(extra, list):  # transformers 4 takes an object here, and a list under the older name
        own["additional_special_tokens"] = extra
    elif extra is not None:
        own["extra_special_tokens"] = extra
    if isinstance(tokenizer.chat_template, str):
        own["chat_template"] = tokenizer.chat_template
    listed = {
        str(number): {key: value for key, value in token.__getstate__().items() if key != "id"}
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    carried = {key: base[key] for key in CARRIED_TOKENIZER_KEYS if key in base}
    known = base.get("tokenizer_class") or own.get("tokenizer_class")
    classes = [PLAIN_TOKENIZER_CLASS] if known in (None, NEW_TOKENIZER_CLASS) else [str(known), PLAIN_TOKENIZER_CLASS]
    for name in classes:
        yield own | carried | {"tokenizer_class": name, "added_tokens_decoder": listed}
        yield own | {"tokenizer_class": name, "added_tokens_decoder": listed}
        yield own | {"tokenizer_class": name}


def _reads_as(folder: Path, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool) -> bool:
    """Whether the folder's tokenizer, loaded as anyone would load it, is this one."""
    try:
        again = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception:  # a class of the model's own may raise anything
        return False
    return (
        again.get_vocab() == tokenizer.get_vocab()
        and again.special_tokens_map == tokenizer.special_tokens_map
        and again.chat_template == tokenizer.chat_template
        and [again(probe).input_ids for probe in PROBES] == [tokenizer(probe).input_ids for probe in PROBES]
    )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} reads as {after.get(key)!r} instead of {value!r}"
        for key, value in before.items()
        if key not in ("transformers_version", "_name_or_path") and _plain(after.get(key)) != _plain(value)
    ]


def _plain(value: Any) -> Any:
    """As JSON holds it; rotary settings without the name that `rope_type` had before."""
    value = json.loads(json.dumps(value, default=str))
    return {key: entry for key, entry in value.items() if key != "type"} if isinstance(value, dict) else value


def _as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
