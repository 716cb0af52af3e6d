"""Export of an adapter: a folder that peft, transformers and vLLM load beside the base, and with it the merged model if asked.

Owns the files of an adapter (adapter_model.safetensors, adapter_config.json) and what says where they load. The folder appears
whole or not at all, like a model's. With `export.merged` the merged model is the folder, and the adapter lies in `adapter/`
inside it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial as bound
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from trainer.export import card, merge, model_folder, older_tools, same_logits, sample
from trainer.export.telling import guarded
from trainer.model import token_rows
from trainer.model.adapter import WRAPPED, Adapter
from trainer.run.adapter_files import CONFIG, INNER, WEIGHTS
from trainer.run.exits import TrainingFailed
from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob

VLLM_MAX_RANK = 16
"""vLLM's --max-lora-rank where nothing is said."""


def write(
    job: NodeJob,
    model: nn.Module,
    adapter: Adapter,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, torch.Tensor],
    end_tokens: Sequence[int],
    describe: Callable[..., str],
    reference: same_logits.Reference | None = None,
) -> Path:
    """Write the adapter folder of a run, and the merged model if the job asks for it; returns the folder.

    Many parameters: those of `model_folder.write`, and the adapter. Rank 0 only. `state` is `Engine.gathered_trainable`.
    Raises TrainingFailed where the adapter lacks a trained tensor, or the merged model differs from base and adapter.
    """
    run = RunDir(job.run_dir)
    partial = run.path / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_files(adapter, job, state, partial)
    generation = model_folder.generation_config(model, tokenizer, end_tokens)
    guarded("generation_config.json", bound(older_tools.write_generation_config, generation, partial))
    older_tools.write_tokenizer(tokenizer, partial, job.spec.model)
    if reference is not None:
        merge.hold(reference, partial, is_quantised=adapter.spec.type == "qlora")
    lines = [where_it_loads(json.loads((partial / CONFIG).read_text(encoding="utf-8")))]
    print(f"adapter: {lines[0]}", flush=True)
    if job.spec.export.merged:
        merged = run.path / ".merged.partial"
        shutil.rmtree(merged, ignore_errors=True)
        difference = merge.merge(partial, merged, sample.held_out_rows(run.path))
        lines.append(f"This folder is base and adapter, {merge.told(difference)}. The adapter alone is in {INNER}/.")
        print(lines[-1], flush=True)
        os.replace(partial, merged / INNER)
        os.replace(merged, partial)
    text = guarded("the model card", bound(describe, adapter=how_to_load(job, adapter, lines)))
    if text is not None:
        (partial / "README.md").write_text(text, encoding="utf-8", errors="replace")
    model_folder.publish(partial, run.model)
    return run.model


def write_files(adapter: Adapter, job: NodeJob, state: dict[str, torch.Tensor], folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json, in peft's format.

    Raises TrainingFailed where a trained tensor would not be in the file.
    """
    spec, config = adapter.spec, adapter.peft.peft_config["default"]
    tensors, used = {}, set()
    for name, tensor in state.items():
        if (saved := file_name(name)) is not None:
            tensors[saved] = tensor
            used.add(name)
    for names in adapter.whole.values():
        for name in names:
            source = name if name in state else _tied_to(adapter, name)
            tensors[WRAPPED + name] = state[source].clone()
            used.add(source)
    for name in state:
        if name.endswith(f".{token_rows.NAME}"):
            module = name.removesuffix(f".{token_rows.NAME}")
            tensors[f"{WRAPPED}{module}.token_adapter.trainable_tokens_delta"] = state[name]
            used.add(name)
    lacking = sorted(set(state) - used)
    if lacking or not tensors:
        raise TrainingFailed(
            f"the adapter would lack {', '.join(lacking[:3]) or 'everything'}; the last checkpoint is whole"
        )
    values = config.to_dict() | {
        "base_model_name_or_path": job.spec.model.base, "revision": job.spec.model.revision, "inference_mode": True,
        "modules_to_save": sorted({name.rpartition(".")[2] for name in adapter.whole}) or None,
    }  # fmt: skip
    if adapter.token_ids:
        ends = sorted(
            {name.split(".token_adapter")[0].rpartition(".")[2] for name in tensors if ".token_adapter." in name}
        )
        values["trainable_token_indices"] = {end: list(adapter.token_ids) for end in ends}
    if adapter.initial:
        tensors = without_initial(tensors, {file_name(name): t for name, t in adapter.initial.items()})
        values |= {"r": 2 * spec.rank, "init_lora_weights": True}
        values["lora_alpha"] = spec.alpha * (math.sqrt(2) if spec.rslora else 2)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    text = json.dumps({key: _plain(value) for key, value in values.items()}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def file_name(name: str) -> str | None:
    """A LoRA parameter's name in the file; None for another parameter. peft leaves out its own name of the adapter."""
    if ".lora_A." in name or ".lora_B." in name:
        return WRAPPED + name.replace(".default.", ".")
    if ".lora_magnitude_vector." in name:
        return WRAPPED + name.split(".default")[0]
    return None


def without_initial(
    tensors: dict[str, torch.Tensor], initial: dict[str | None, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """An adapter of twice the rank for the base as it is, from one that took its beginning out of the base's weights:
    B A - B0 A0 = [B, -B0] [A; A0]."""
    out = dict(tensors)
    for name, began in initial.items():
        if name is not None:
            began = began.to(tensors[name].dtype).cpu()
            is_down = ".lora_A." in name
            out[name] = torch.cat([tensors[name], began if is_down else -began], dim=0 if is_down else 1)
    return out


def how_to_load(job: NodeJob, adapter: Adapter, lines: list[str]) -> str:
    """For the card: what the adapter stands beside, and what one writes to load it."""
    spec = job.spec
    beside = " held in 4 bits (NF4) while it was trained" if adapter.spec.type == "qlora" else ""
    text = [f"Low-rank matrices beside the frozen weights of {card.shorten(spec.model.base)}{beside}.", *lines]
    if not spec.export.merged:
        text.append(
            "`AutoModelForCausalLM.from_pretrained` of this folder loads base and adapter where peft is installed"
            + (
                "; the vocabulary has grown, so load the base first, `resize_token_embeddings(len(tokenizer))`, then "
                "`PeftModel.from_pretrained(base, folder)`."
                if adapter.has_grown
                else "."
            )
        )
    return "\n".join(text)


def where_it_loads(config: dict[str, Any]) -> str:
    """What a server would say to this adapter, by vLLM's own rules."""
    reasons = []
    if config.get("use_dora"):
        reasons.append("it is a DoRA")
    if config.get("modules_to_save"):
        reasons.append(f"it holds whole modules ({', '.join(config['modules_to_save'])})")
    if config.get("trainable_token_indices"):
        reasons.append("it holds rows of the embeddings")
    if config.get("bias", "none") != "none":
        reasons.append("it holds biases")
    if reasons:
        return f"vLLM cannot serve it beside its base ({'; '.join(reasons)}); `dolphin merge` makes one model of both."
    needs = f" with --max-lora-rank {config['r']}" if config["r"] > VLLM_MAX_RANK else ""
    return f"vLLM can serve it beside its base{needs}; peft and transformers load it as it is."


def _tied_to(adapter: Adapter, name: str) -> str:
    """The trained name of a tensor that two modules share."""
    model = adapter.peft.get_base_model()
    wanted = dict(model.named_parameters(remove_duplicate=False))
    found: str = next(n for n, p in model.named_parameters() if p is wanted[name])
    return found


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)
