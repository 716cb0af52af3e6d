"""Tokenizers of several families, made here without weights, and data jobs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.run.chat_templates.chatml import CHATML
from trainer.run.spec import NodeJob

FIXTURES = Path(__file__).parent.parent / "fixtures" / "data"

CHATML_UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + (system + '\n\n' if loop.first and system is defined else '')"
    " + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and '</think>' in message['content'] %}"
    "{{ message['content'].split('</think>')[-1].lstrip('\n') }}{% else %}{{ message['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"marked": CHATML, "unmarked": CHATML_UNMARKED, "llama3": LLAMA3, "mistral": MISTRAL}

WORDS = [
    "the sea is blue and deep ",
    "a dolphin swims far from land\n\n",
    "def f(x):\n    return x * 2\n",
    "Größe ça va привет 你好 🐬",
]
SPECIAL = [
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<pad>",
]


def write_tokenizer(folder: Path, family: str = "byte-level", template: str | None = CHATML, **special: str) -> Path:
    """A tokenizer folder. Families: byte-level (GPT-2), llama3 (split and byte-level, adds BOS, trims offsets), nfc (Qwen:
    byte-level behind an NFC normalizer), sentencepiece (Llama 2: metaspace with byte fallback, adds BOS)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    extra: list[str] = []
    if family == "llama3":
        split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s*[\r\n]+|\s+|[^\s\p{N}]+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    elif family == "nfc":
        tokenizer.normalizer = normalizers.NFC()
    elif family == "sentencepiece":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet, extra = [], [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*SPECIAL, *extra], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    if family in ("llama3", "sentencepiece"):
        bos = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), bos])
    if extra:  # byte tokens are ordinary ones
        description = json.loads(tokenizer.to_str())
        description["added_tokens"] = [entry for entry in description["added_tokens"] if entry["content"] not in extra]
        tokenizer = Tokenizer.from_str(json.dumps(description))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"} | special
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{name: token for name, token in names.items() if token}
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*said: str, system: str | None = None) -> dict[str, Any]:
    """A sharegpt row in which user and assistant take turns."""
    turns = [{"from": "system", "value": system}] if system is not None else []
    turns += [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(said)]
    return {"conversations": turns}


def data_job(
    root: Path,
    sources: list[dict[str, Any]] | Path,
    *,
    tokenizer: Path | None = None,
    name: str = "run",
    train: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **data: Any,
) -> NodeJob:
    """A job that prepares `sources` in a run folder of its own under `root`; the cache and the tokenizer are shared."""
    if tokenizer is None:
        tokenizer = root / "tokenizer"
        if not tokenizer.exists():
            write_tokenizer(tokenizer, eos_token="<|im_end|>")
    listed = [{"path": str(sources)}] if isinstance(sources, Path) else sources
    settings = {"sequence_length": 256, "validation_fraction": 0.0, "workers": 1} | data
    return NodeJob.model_validate(
        {
            "run_id": name, "run_dir": str(root / name), "cache_dir": str(root / "cache"), "nproc": 1, "device": "cpu",
            "spec": {
                "name": "tiny",
                "model": {"base": str(tokenizer)} | (model or {}),
                "data": {"sources": listed} | settings,
                "train": {"global_batch": 4, "micro_batch": 1} | (train or {}),
            },
        }
    )  # fmt: skip
