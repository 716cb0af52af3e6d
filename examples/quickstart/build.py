"""Builds what the quickstart trains on: a chat dataset, a tokenizer and the configuration of a small model. No network.

The conversations are questions about Python's standard library, answered with its own documentation strings. The same
Python version always gives the same bytes. Reads the standard library only; writes `data/` and `model/` beside itself.

    python examples/quickstart/build.py
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import random
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
SEED = 42
VOCABULARY_SIZE = 4096
SPECIAL_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|im_end|>", "<|finetune_right_pad_id|>", "<|im_start|>"]
"""The reference job's, in its order: their ids are 0 to 4."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

MODULES = [
    "bisect", "collections", "contextlib", "copy", "csv", "fractions", "functools", "glob", "gzip", "heapq", "itertools",
    "json", "math", "operator", "os", "os.path", "pathlib", "queue", "random", "re", "shlex", "shutil", "statistics",
    "string", "subprocess", "tempfile", "textwrap", "threading", "time", "urllib.parse", "uuid", "builtins",
]  # fmt: skip

SYSTEM_PROMPTS = [
    "You are Dolphin, a helpful assistant.",
    "You are Dolphin, an expert on Python's standard library. Answer from its documentation.",
    "You answer questions about Python briefly and exactly.",
]
DOES = ["What does {name} do?", "Explain {name}.", "What is {name} for?", "Tell me about {name} in Python."]
WHERE = ["Where is {name} defined?", "Which module is {name} in?"]
FIND = ["Which part of Python's {module} does this: {summary}", "I need something from {module}: {summary}"]
THANKS = ["Thanks! And how is it called?", "How do I call it?", "Which arguments does it take?"]


class Entry(NamedTuple):
    """One documented thing: `os.path.join`, its module, its signature (where there is one) and its documentation."""

    name: str
    module: str
    signature: str | None
    text: str

    @property
    def summary(self) -> str:
        return self.text.split("\n\n")[0].replace("\n", " ")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the quickstart's dataset, tokenizer and model configuration.")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for data/ and model/ (default: beside this file)"
    )
    out = parser.parse_args().out
    entries = read_documentation()
    conversations = make_conversations(entries)
    write_lines(out / "data" / "stdlib-chat.jsonl", conversations)
    write_model(out / "model", conversations)
    print(f"{len(conversations)} conversations about {len(entries)} names in {out / 'data' / 'stdlib-chat.jsonl'}")
    print(f"tokenizer and model configuration in {out / 'model'}")
    return 0


def read_documentation(modules: list[str] | None = None) -> list[Entry]:
    """Functions, classes and public methods of the standard library that say what they do, sorted by name."""
    warnings.simplefilter("ignore", DeprecationWarning)  # old names are documented too
    found: dict[str, Entry] = {}
    for module_name in MODULES if modules is None else modules:
        try:
            module = importlib.import_module(module_name)
        except ImportError:  # a Python built without sqlite3, ssl or lzma has less to tell
            print(f"quickstart: this Python has no module {module_name}; going on without it", file=sys.stderr)
            continue
        for name, value in documented(module):
            entry = describe(f"{module_name}.{name}", module_name, value)
            if entry is not None:
                found[entry.name] = entry
    return [found[name] for name in sorted(found)]


def documented(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Public functions and classes of `module` that are not merely imported by it, and the classes' own methods."""
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isroutine(value) or inspect.isclass(value)):
            continue
        if module_root(getattr(value, "__module__", None) or module.__name__) != module_root(module.__name__):
            continue
        yield name, value
        if inspect.isclass(value):
            for method_name, method in sorted(vars(value).items()):
                if not method_name.startswith("_") and inspect.isroutine(method):
                    yield f"{name}.{method_name}", method


def module_root(name: str) -> str:
    """`os` for os.path, and for posix and posixpath, where they are implemented; `json` for _json."""
    root = name.lstrip("_").split(".")[0]
    return "os" if root in ("posix", "posixpath", "genericpath") else root


def describe(name: str, module: str, value: Any) -> Entry | None:
    """The entry of `value`, or None where it has no documentation of its own or one too short to be an answer."""
    own = getattr(value, "__doc__", None)
    if not isinstance(own, str):
        return None
    # Some C functions begin with their signature; the rest is what they do.
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(own))
    short_name = name.rsplit(".", 1)[1]
    if re.match(rf"[\w.]*{re.escape(short_name)}\(", paragraphs[0]):
        paragraphs = paragraphs[1:]
    text = "\n\n".join(paragraphs[:2]).strip()
    if not 24 <= len(text) <= 320 or " at 0x" in text or ">>>" in text:
        return None
    return Entry(name.removeprefix("builtins."), module, signature_of(value), text)


def signature_of(value: Any) -> str | None:
    try:
        signature = str(inspect.signature(value))
    except (ValueError, TypeError):  # not introspectable
        return None
    # A default shown by its address, or by this machine's settings, would differ from run to run.
    return None if "<" in signature or "/" in signature.replace(", /", "") or len(signature) > 160 else signature


def make_conversations(entries: list[Entry]) -> list[dict[str, Any]]:
    """Four conversations an entry, single and multi-turn, some with a system prompt, in a seeded order."""
    rng = random.Random(SEED)
    conversations = []
    for entry in entries:
        does, does_too = rng.sample(DOES, 2)
        called = entry.signature and f"{entry.name}{entry.signature}"
        forms = [
            [(does, entry.text)],
            [(does_too, entry.text)] + ([(rng.choice(THANKS), called)] if called else []),
            [(rng.choice(FIND), f"That is {entry.name}.")],
            [(rng.choice(WHERE), f"{entry.name} is in {entry.module}."), (rng.choice(DOES), entry.text)],
        ]
        conversations.extend(conversation(rng, turns, entry) for turns in forms)
    rng.shuffle(conversations)
    return [{"id": f"stdlib-{i}", "conversations": turns} for i, turns in enumerate(conversations)]


def conversation(rng: random.Random, turns: list[tuple[str, str]], entry: Entry) -> list[dict[str, str]]:
    """`turns` (question form, answer) in sharegpt's from/value, with a system prompt in one of three."""
    messages = []
    if rng.randrange(3) == 0:
        messages.append({"from": "system", "value": rng.choice(SYSTEM_PROMPTS)})
    for question, answer in turns:
        asked = question.format(name=entry.name, module=entry.module, summary=entry.summary)
        messages.append({"from": "human", "value": asked})
        messages.append({"from": "gpt", "value": answer})
    return messages


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_model(folder: Path, conversations: list[dict[str, Any]]) -> None:
    """A byte-level BPE tokenizer trained on the conversations, with the ChatML template, and a Llama's config.json.

    There are no weights: `model.init: random` makes them from the configuration and the seed.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (turn["value"] for record in conversations for turn in record["conversations"])
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|finetune_right_pad_id|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "chat_template": CHATML,
        },
    )
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "bos_token_id": SPECIAL_TOKENS.index("<|begin_of_text|>"),
            "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
            "pad_token_id": SPECIAL_TOKENS.index("<|finetune_right_pad_id|>"),
        },
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
