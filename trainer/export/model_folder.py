"""Export: the model folder that others can load. Owns the folder's completeness: it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trainer.data.plan import DataPlan
from trainer.export import card
from trainer.model.freeze import FreezeReport
from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob

MAX_SHARD_SIZE = "5GB"


def write(
    job: NodeJob,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, torch.Tensor],
    plan: DataPlan,
    report: FreezeReport,
    world_size: int,
) -> Path:
    """Write config, bf16 safetensors, tokenizer with its chat template, generation config and card; returns the folder.

    Rank 0 only; `weights` are whole, by transformers name. Written beside and renamed: a killed export leaves no model
    folder, and the next attempt, which resumes at the last step, exports again.
    """
    run = RunDir(job.run_dir)
    partial = run.path / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    config = model.config
    config.use_cache = True
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, key, getattr(tokenizer, key))
    model.generation_config = generation_config(model, tokenizer)  # type: ignore[assignment]
    model.save_pretrained(partial, state_dict=weights, max_shard_size=MAX_SHARD_SIZE)  # type: ignore[operator]
    config.dtype = torch.bfloat16  # save_pretrained writes that of the live parameters
    config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card.render(job, tokenizer, plan, report, world_size), encoding="utf-8")
    for path in partial.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(run.model, ignore_errors=True)
    os.replace(partial, run.model)
    return run.model


def generation_config(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The base model's sampling settings with this tokenizer's special tokens."""
    base = getattr(model, "generation_config", None)
    config = GenerationConfig.from_dict(base.to_dict()) if base is not None else GenerationConfig()
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return config
