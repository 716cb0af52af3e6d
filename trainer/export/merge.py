"""Merging: one model of a base and an adapter, shard by shard from the base's own files.

Owns the merged folder and its comparison with base and adapter. Host memory holds one shard of the base, and the adapter; peft
does the arithmetic of each layer. Run by hand: `python -m trainer.export.merge ADAPTER TARGET`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from trainer.export import base_files, load_folder, older_tools, same_logits, shards, weights
from trainer.model import build
from trainer.model.adapter import WRAPPED
from trainer.run import adapter_files
from trainer.run.exits import BadInput, ExitCode, TrainingFailed
from trainer.run.settings.model import ModelSpec

TOLERANCE = 0.15
"""Largest difference of a logit, in standard deviations of the logits: merged weights are rounded to bf16's 8 bits once more."""
COPIED = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "generation_config")
"""Beginnings of the files that adapter and merged model share."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="trainer.export.merge", description="Make one model of an adapter and its base."
    )
    parser.add_argument("adapter", type=Path, help="the adapter folder")
    parser.add_argument("target", type=Path, help="the folder to write; must not exist")
    options = parser.parse_args()
    try:
        print(f"{options.target}: {told(merge(options.adapter, options.target, None))}", file=sys.stderr)
    except (BadInput, TrainingFailed) as error:
        print(f"dolphin: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT if isinstance(error, BadInput) else ExitCode.FAILED)


def merge(adapter: Path, target: Path, rows: list[list[int]] | None) -> float:
    """Write the merged model in bf16 to `target`; returns the largest difference of a logit between it and base + adapter on
    `rows` of token ids (texts of its own where None), in standard deviations of the logits.

    Raises BadInput where base or adapter cannot be read or `target` exists, TrainingFailed where the two differ by more than
    rounding; nothing is left at `target` then.
    """
    if target.exists():
        raise BadInput(f"{target} exists; name a folder that does not")
    source = _Source.read(adapter)
    partial = target.with_name(f".{target.name}.merging")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if not _merge_files(source, partial):
            _merge_whole(source, partial)
        _write_rest(source, partial)
        difference = _difference(source, partial, rows)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if difference > TOLERANCE:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingFailed(
            f"the merged model's logits differ from those of base and adapter by {difference:.2g} standard deviations; it is not "
            "kept. The adapter is whole"
        )
    os.replace(partial, target)
    return difference


def hold(reference: same_logits.Reference, adapter: Path, *, is_quantised: bool) -> None:
    """Print how far base and written adapter together are from the trained model; as `same_logits.hold`.

    Raises TrainingFailed where they are another model. Beside a base in 4 bits nothing is compared: others load it in 16.
    """
    if is_quantised:
        same_logits.left_out("it was trained beside a base in 4 bits, and is loaded beside one in 16")
        return
    source = _Source.read(adapter)
    stored = base_files.tensors_of(source.spec.base, source.spec.revision)
    same_logits.hold(reference, sum(tensor.size_bytes for tensor in stored.values()), lambda: _adapted(source))


def told(difference: float) -> str:
    return f"merged in bf16: its logits differ from those of base and adapter by at most {difference:.1g} of their standard deviation"


@dataclass(frozen=True)
class _Source:
    """An adapter and what it stands beside, read once."""

    adapter: Path
    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    tokenizer: Any
    spec: ModelSpec
    """Of the base."""
    config: Any
    """Of the base."""

    @classmethod
    def read(cls, adapter: Path) -> _Source:
        """Raises BadInput where a part of it is not there or not whole."""
        from transformers import AutoConfig

        settings = adapter_files.settings_of(adapter)
        spec = ModelSpec(base=settings["base_model_name_or_path"], revision=settings.get("revision"))
        path = adapter / adapter_files.WEIGHTS
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        with build.explained(spec):
            config = AutoConfig.from_pretrained(spec.base, revision=spec.revision)
        return cls(adapter, settings, tensors, load_folder.tokenizer_of(adapter), spec, config)


class _Changes:
    """What an adapter does to each tensor of a base."""

    def __init__(self, source: _Source) -> None:
        tensors = source.tensors
        self.tensors, self.settings, self.vocabulary = tensors, source.settings, len(source.tokenizer)
        self.embeddings, self.is_tied = _embeddings(source.config)
        names = [name.removeprefix(WRAPPED) for name in tensors]
        self.layers = {name.partition(".lora_A.")[0] for name in names if ".lora_A." in name}
        self.rows = {n.partition(".token_adapter.")[0]: tensors[WRAPPED + n] for n in names if ".token_adapter." in n}
        self.whole = {n for n in names if ".lora_" not in n and ".token_adapter." not in n}

    @property
    def touched(self) -> set[str]:
        """Names that a base's files must have."""
        return {f"{name}.weight" for name in self.layers | self.rows.keys()} | self.whole

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The merged tensor, in fp32 where it was changed."""
        module = name.removesuffix(".weight")
        if name in self.whole:
            return self.tensors[WRAPPED + name].float()
        if module in self.layers:
            return self._layer(module, tensor)
        if name in self.embeddings and tensor.shape[0] < self.vocabulary:
            mean = tensor.float().mean(0).to(tensor.dtype)  # as trainer.model.build grows a vocabulary
            tensor = torch.cat([tensor, mean.expand(self.vocabulary - tensor.shape[0], -1)])
        if module in self.rows:
            ids = self.settings["trainable_token_indices"][module.rpartition(".")[2]]
            return tensor.float().index_copy(0, torch.tensor(ids), self.rows[module].float())
        return tensor

    def _layer(self, module: str, tensor: torch.Tensor) -> torch.Tensor:
        """One layer's weight with its adapter in it, computed by peft in fp32."""
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        holder = nn.Module()
        holder.layer = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        holder.layer.weight.data = tensor.float()
        config = LoraConfig(
            r=self.settings["r"], lora_alpha=self.settings["lora_alpha"], use_rslora=self.settings["use_rslora"],
            use_dora=self.settings["use_dora"], target_modules=["layer"], inference_mode=True,
        )  # fmt: skip
        adapted: Any = get_peft_model(holder, config)
        start = f"{WRAPPED}{module}."
        own = {
            f"{WRAPPED}layer.{name.removeprefix(start)}": value.float()
            for name, value in self.tensors.items()
            if name.startswith(start)
        }
        found: Any = set_peft_model_state_dict(adapted, own)
        if found.unexpected_keys:
            raise BadInput(f"the adapter holds {found.unexpected_keys[0]}, which no merge knows")
        merged: torch.Tensor = adapted.merge_and_unload(safe_merge=True).layer.weight.detach()
        return merged


def _merge_files(source: _Source, folder: Path) -> bool:
    """File by file of the base. False, with nothing written, where its files hold what is changed under other names."""
    changes, stored = _Changes(source), base_files.tensors_of(source.spec.base, source.spec.revision)
    # the files of a base with tied embeddings have one of both
    twice = changes.embeddings if changes.is_tied else frozenset()
    if not stored or not changes.touched - twice <= stored.keys():
        return False
    keeps, written = weights.is_half(stored), list[Path]()
    for path in sorted({tensor.file for tensor in stored.values()}):
        shard = {}
        with safe_open(path, "pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - not a dict
                tensor = changes.apply(key, handle.get_tensor(key))
                if tensor.is_floating_point() and not (keeps and stored[key].dtype == "F32"):
                    tensor = tensor.to(torch.bfloat16)
                shard[key] = tensor.contiguous()
        written.append(folder / f"part-{len(written)}.safetensors")
        save_file(shard, written[-1], metadata={"format": "pt"})
    shards.name_files(folder, written)
    return True


def _merge_whole(source: _Source, folder: Path) -> None:
    """The whole model in memory: for families whose files name or fuse weights otherwise than their modules."""
    model = _adapted(source).merge_and_unload(safe_merge=True)
    model.save_pretrained(folder)


def _write_rest(source: _Source, folder: Path) -> None:
    """Configuration, tokenizer and stop tokens."""
    for path in source.adapter.iterdir():
        if path.name.startswith(COPIED):
            shutil.copy2(path, folder / path.name)
    config = source.config
    text = config.get_text_config(decoder=True)
    text.vocab_size = max(text.vocab_size, len(source.tokenizer))
    generation = source.adapter / "generation_config.json"
    if generation.is_file():
        stops = json.loads(generation.read_text(encoding="utf-8"))
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, key, stops.get(key))
    config.dtype = torch.bfloat16
    older_tools.write_config(config, folder, source.spec)


def _difference(source: _Source, merged: Path, rows: list[list[int]] | None) -> float:
    """Largest difference of a logit, in standard deviations of all logits: one model in memory at a time."""
    from transformers import AutoModelForCausalLM

    inputs = rows or [source.tokenizer(text).input_ids for text in older_tools.PROBES]
    model = _adapted(source)
    reference = _logits(model, inputs)
    del model
    gc.collect()
    found = _logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16), inputs)
    spread = torch.cat([logits.reshape(-1) for logits in reference]).std()
    largest = max((a - b).abs().max() for a, b in zip(reference, found, strict=True))
    return float(largest / spread)


def _logits(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model.eval()(torch.tensor([row])).logits[0].float() for row in rows]


def _adapted(source: _Source) -> Any:
    """Base and adapter as one module in bf16, its vocabulary grown."""
    base = adapter_files.Base(source.spec.base, source.spec.revision)
    return load_folder.beside_base(source.adapter, base, len(source.tokenizer), torch.bfloat16)


def _embeddings(config: Any) -> tuple[frozenset[str], bool]:
    """Names of the embeddings' weights, and whether the two are one."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    ends = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    names = {id(part): name for name, part in model.named_modules()}
    return frozenset(f"{names[id(part)]}.weight" for part in ends), len({id(part.weight) for part in ends}) < len(ends)


if __name__ == "__main__":
    main()
