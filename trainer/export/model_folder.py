"""Export: the model folder that others can load. Owns the folder's completeness: it appears whole or not at all.

Weights, configuration and tokenizer come first and are checked; what only describes the model comes last and may fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial as bound
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trainer.export import base_files, older_tools, same_logits, sample, shards, weights
from trainer.export.telling import guarded, warn
from trainer.run.exits import TrainingFailed
from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob
from trainer.run.weights_index import StoredTensor, fingerprint


def base_tensors(job: NodeJob) -> dict[str, StoredTensor]:
    """The tensors of the base that the export is held against; none where the job starts from fresh weights."""
    if job.spec.model.init == "random":
        return {}
    return base_files.tensors_of(job.spec.model.base, job.spec.model.revision)


def base_key(job: NodeJob) -> str:
    """Fingerprint of the base's weights; empty where it has none, or none that safetensors hold."""
    tensors = base_tensors(job)
    return fingerprint(tensors) if tensors else ""


def write(
    job: NodeJob,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    gathered: Iterable[shards.Gathered],
    end_tokens: Sequence[int],
    describe: Callable[[], str],
    reference: same_logits.Reference | None = None,
) -> Path:
    """Write config, safetensors, tokenizer with its chat template, generation config and card; returns the folder.

    Many parameters: the model, its three parts that are gathered elsewhere, and what it is held against. Rank 0 only. `gathered` is `Engine.gathered`, `end_tokens` are what answers were trained to end with, `describe` makes
    the card's text. Written beside and renamed: a killed export leaves no model folder, and the next attempt, which resumes
    at the last step, exports again. Raises TrainingFailed where the folder is not the base plus what was trained.
    """
    run = RunDir(job.run_dir)
    partial = run.path / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    config = model.config
    config.use_cache = True
    base = base_tensors(job)
    generation = generation_config(model, tokenizer, end_tokens)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, key, getattr(generation, key))
    model.generation_config = GenerationConfig()  # a bad one would stop the weights
    weights.refuse_incomplete(model, shards.write(model, partial, gathered, base))
    config.dtype = torch.bfloat16  # save_pretrained writes that of the live parameters
    guarded("generation_config.json", bound(older_tools.write_generation_config, generation, partial))
    older_tools.write_config(config, partial, job.spec.model)
    older_tools.write_tokenizer(tokenizer, partial, job.spec.model)
    try:
        for line in weights.compare(partial, model, base):
            warn(line)
        if reference is not None:
            same_logits.hold_folder(reference, partial)
    except TrainingFailed as error:
        raise TrainingFailed(f"{error}; what was written lies in {partial}") from error
    text = guarded("the model card", describe)
    if text is not None:
        (partial / "README.md").write_text(text, encoding="utf-8", errors="replace")
    publish(partial, run.model)
    return run.model


def publish(partial: Path, folder: Path) -> None:
    """Give a written folder its name, every byte of it on the disk first."""
    for path in partial.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def sample_of(folder: Path, run: RunDir) -> dict[str, str] | None:
    """A question and the exported model's answer, for the run's record; None where there is none to show."""
    return guarded("the sample answer", bound(sample.of_run, folder, run.path))


def generation_config(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, end_tokens: Sequence[int]
) -> GenerationConfig:
    """The base model's sampling settings with this tokenizer's special tokens.

    It stops at the base's stop tokens, the tokenizer's end token and the `end_tokens` that answers were trained to end
    with, together: a model that is stopped at fewer goes on behind the end of its answer.
    """
    base = getattr(model, "generation_config", None)
    config = GenerationConfig.from_dict(base.to_dict()) if base is not None else GenerationConfig()
    config.bos_token_id = tokenizer.bos_token_id
    own = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = sorted({number for number in [*own, tokenizer.eos_token_id, *end_tokens] if number is not None})
    config.eos_token_id = stops[0] if len(stops) == 1 else stops
    config.pad_token_id = tokenizer.pad_token_id
    return config
