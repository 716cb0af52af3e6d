"""What a model is, asked of transformers itself on the meta device: shapes, sizes, stored names, and how it is called for a batch.

Run as `python -m trainer.model.inspect FOLDER`; prints one JSON object. Loads no weight and runs none of the model's own code from
the hub. The launcher asks for families that its table does not know, and keeps the answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from trainer.model import self_test
from trainer.model.build import refuse_unloadable
from trainer.model.packed import beside_language, decoder_of
from trainer.run.adapter_files import base_of, is_adapter
from trainer.run.exits import BadInput, ExitCode, leave

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN_COUNTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
MLP = ("mlp", "ffn", "feed_forward", "experts", "moe")


def main() -> None:
    parser = argparse.ArgumentParser(prog="trainer.model.inspect", description=__doc__)
    parser.add_argument("folder", help="a folder with the model's config.json, or an adapter's")
    parser.add_argument("--attention", default="auto")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    try:
        name, revision = options.folder, None
        if is_adapter(name):
            name, revision = base_of(Path(name))
        facts = inspect(AutoConfig.from_pretrained(name, revision=revision), options.attention)
    except (BadInput, OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        print(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, file=sys.stderr)
        leave(ExitCode.BAD_INPUT)
    print(json.dumps(facts))
    leave(ExitCode.DONE)


def inspect(config: Any, requested: str = "auto") -> dict[str, Any]:
    """Facts of the model that `config` describes. Raises what transformers raises for one that it cannot build."""
    refuse_unloadable(config)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config(decoder=True)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        raise BadInput(f"a {type(model).__name__} has no output embedding: it is no causal language model")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    experts, chosen = _first(text, EXPERT_COUNTS), _first(text, CHOSEN_COUNTS)
    hidden = embedding.weight.shape[1]
    heads = _first(text, ("num_attention_heads", "n_head", "n_heads", "num_heads")) or 1
    share = chosen / experts if experts and chosen else 1.0
    verdicts = {packing: self_test.of_config(config, requested, "cpu", "fp32", packing) for packing in (True, False)}
    return {
        "model_type": config.model_type,
        "class": type(model).__name__,
        "hidden": hidden,
        "intermediate": _active_width(model, share, hidden) or _first(text, ("intermediate_size", "n_inner")) or 4 * hidden,
        "num_layers": text.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": _first(text, ("num_key_value_heads", "num_kv_heads")) or heads,
        "head_size": _first(text, ("head_dim",)) or hidden // heads,
        "vocabulary": embedding.weight.shape[0],
        "is_tied": head.weight is embedding.weight or bool(config.tie_word_embeddings),
        "embedding_name": names[id(embedding.weight)],
        "head_name": names.get(id(head.weight), names[id(embedding.weight)]),
        "sliding_window": _first(text, ("sliding_window",)),
        "expert_share": share,
        "layers_path": _layers_path(model),
        "beside": sorted(beside_language(model)),
        "shapes": shapes,
        "stored": _stored(model),
        "packing": {
            str(packing).lower(): None if found is None else {
                "holds": found.way is not None,
                "line": found.line() if found.way else "",
                "refusal": "" if found.way else found.refusal(packing),
                "wants_package": bool(found.wanted()),
            }
            for packing, found in verdicts.items()
        },
    }  # fmt: skip


def _first(config: Any, keys: tuple[str, ...]) -> int | None:
    """The first of these keys that holds a number; some hold one for each layer, and then the largest counts."""
    for key in keys:
        value = getattr(config, key, None)
        if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
            value = max(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _active_width(model: Any, share: float, hidden: int) -> int | None:
    """Width of a gated MLP that has as many weights as a token meets in one layer's experts; None without experts."""
    if share == 1.0:
        return None
    by_layer: dict[str, float] = {}
    for name, parameter in decoder_of(model).named_parameters():
        if parameter.ndim >= 2 and any(part in name for part in MLP):
            layer = next((part for part in name.split(".") if part.isdigit()), "")
            by_layer[layer] = by_layer.get(layer, 0) + parameter.numel() * (share if ".experts." in name else 1.0)
    return int(max(by_layer.values(), default=0) / (3 * hidden)) or None


def _layers_path(model: Any) -> str:
    """What stands before a layer's number in the names of the language part's parameters."""
    inside = {id(parameter) for parameter in decoder_of(model).parameters()}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        if number is not None and id(parameter) in inside:
            return ".".join(parts[:number]) + "."
    return ""


def _stored(model: Any) -> dict[str, list[int]]:
    """Names and shapes as the family's files have them, where transformers keeps weights in another layout."""
    from transformers.core_model_loading import revert_weight_conversion

    state = dict(model.named_parameters())
    for path, part in model.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                state[f"{path}.{name}" if path else name] = buffer
    return {name: list(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}


if __name__ == "__main__":
    main()
