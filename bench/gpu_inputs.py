"""What bench/gpu.py trains, and on what: a base of random weights, a tokenizer and conversations of stated parameters. No network.

    python -m bench.gpu_inputs FOLDER [--scaled] [--tokens N]

Writes FOLDER/base (Llama 3.1 8B as dolphin's table of known models has it; a tiny Llama with --scaled), FOLDER/data.jsonl and
last FOLDER/facts.json: the machine's versions, and the rate of a large matrix product here. A process of its own: the one that
starts runs never holds a GPU. A folder that has its facts.json is left as it is.
"""

from __future__ import annotations

import argparse
import json
import string
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from launcher.models.architecture import from_config
from launcher.models.known import KNOWN_CONFIGS

FULL: dict[str, Any] = {
    **KNOWN_CONFIGS["llama-3.1-8b"], "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip
"""Llama 3.1 8B."""
SCALED: dict[str, Any] = {
    **FULL, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1024,
}  # fmt: skip
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|im_end|>", "<|finetune_right_pad_id|>", "<|im_start|>"]
PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "flash-attn",
    "liger-kernel",
    "bitsandbytes",
    "torchao",
    "triton",
    "trl",
)


@dataclass(frozen=True, slots=True)
class Data:
    """Conversations by their parameters: lengths are log-normal, in tokens."""

    tokens: int
    """Of all conversations together, the template's own left out."""
    exchanges: tuple[int, int] = (1, 3)
    question_median: float = 60.0
    answer_median: float = 180.0
    sigma: float = 0.8
    seed: int = 0

    def __str__(self) -> str:
        return (
            f"at least {self.tokens:,} tokens of random words, {self.exchanges[0]} to {self.exchanges[1]} exchanges, questions of "
            f"{self.question_median:.0f} tokens and answers of {self.answer_median:.0f} (medians, log-normal, sigma "
            f"{self.sigma}), seed {self.seed}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scaled", action="store_true")
    parser.add_argument("--tokens", type=int, default=5_000_000)
    options = parser.parse_args()
    facts = options.folder / "facts.json"
    if facts.exists():
        return
    config, data = (SCALED, Data(options.tokens, (1, 1), 8, 24)) if options.scaled else (FULL, Data(options.tokens))
    (options.folder / "base").mkdir(parents=True, exist_ok=True)
    words = write_tokenizer(options.folder / "base", config["vocab_size"])
    write_data(options.folder / "data.jsonl", data, words)
    write_base(options.folder / "base", config)
    found = {"data": str(data), "matmul_tflops": matmul_tflops(), "versions": versions()}
    facts.write_text(json.dumps(found, indent=1))


def vocabulary_of(size: int) -> tuple[dict[str, int], list[tuple[str, str]], list[str]]:
    """(token -> id, merges, words that are one token with the space before them) of a byte-level BPE of `size` entries."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(ByteLevel.alphabet())])}
    merges, level = list[tuple[str, str]](), ["Ġ"]
    while len(vocabulary) < size:
        longer = [(word, letter) for word in level for letter in string.ascii_lowercase][: size - len(vocabulary)]
        merges += longer
        level = [word + letter for word, letter in longer]
        vocabulary |= {word: len(vocabulary) + index for index, word in enumerate(level)}
    return vocabulary, merges, [token.replace("Ġ", "") for token in vocabulary if len(token) > 2 and token[0] == "Ġ"]


def write_tokenizer(folder: Path, size: int) -> list[str]:
    """The tokenizer's files; returns its words of one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges, words = vocabulary_of(size)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[2], pad_token=SPECIAL[3]
    )
    fast.save_pretrained(folder)
    return words


def write_data(path: Path, data: Data, words: list[str]) -> None:
    """sharegpt conversations, a line each."""
    chance = np.random.default_rng(data.seed)
    written = 0
    with open(path, "w", encoding="utf-8") as out:
        while written < data.tokens:
            turns = []
            for _ in range(chance.integers(data.exchanges[0], data.exchanges[1], endpoint=True)):
                for speaker, median in (("human", data.question_median), ("gpt", data.answer_median)):
                    length = 1 + int(chance.lognormal(np.log(median), data.sigma))
                    text = " ".join(words[index] for index in chance.integers(len(words), size=length))
                    turns.append({"from": speaker, "value": f" {text}"})
                    written += length
            out.write(json.dumps({"conversations": turns}) + "\n")


def write_base(folder: Path, config: dict[str, Any]) -> None:
    """Random weights in bf16, a file for each layer; config.json last, so that a torn folder is not taken for a model."""
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    index: dict[str, str] = {}
    for name, tensors in _files(from_config(config, "bench").shapes):
        made = {
            each: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) < 2
            else torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0.0, 0.02, generator=generator).cpu()
            for each, shape in tensors.items()
        }
        save_file(made, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}
    more = {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "tie_word_embeddings": False, **ids}
    (folder / "config.json").write_text(json.dumps({**config, **more}, indent=1))


def _files(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        groups.setdefault(".".join(name.split(".")[:3]) if ".layers." in name else name, {})[name] = shape
    for number, tensors in enumerate(groups.values(), 1):
        yield f"model-{number:05d}-of-{len(groups):05d}.safetensors", tensors


def matmul_tflops() -> float:
    """Of one large bf16 matrix product here, the best of five: what a card without a data sheet is measured by."""
    import torch

    on_gpu = torch.cuda.is_available()
    size = 8192 if on_gpu else 512
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda" if on_gpu else "cpu") for _ in range(2))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e12


def versions() -> dict[str, str]:
    import torch

    found = {"python": sys.version.split()[0], "CUDA": torch.version.cuda or "none"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
