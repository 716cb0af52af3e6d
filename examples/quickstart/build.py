"""Builds what the quickstart trains on: a chat dataset, a tokenizer and the configuration of a small model. No network.

The conversations are questions about the names of Python's standard library: which module a name is in, what it is, how it is
written. Each name is asked about in one conversation alone, so that a conversation that is held out is about a name that the
model has never seen. The same Python version always gives the same bytes. Reads the standard library only; writes `data/` and
`model/` beside itself.

    python examples/quickstart/build.py
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import random
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
SEED = 42
NUM_NAMES = 3000
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
    "argparse", "ast", "asyncio", "bisect", "calendar", "cmath", "codecs", "collections", "configparser",
    "contextlib", "copy", "csv", "datetime", "decimal", "difflib", "dis", "email.message", "email.utils", "enum", "fractions",
    "ftplib", "functools", "gettext", "glob", "gzip", "heapq", "html", "http.client", "http.cookiejar", "imaplib", "inspect",
    "io", "ipaddress", "itertools", "json", "keyword", "locale", "logging", "mailbox", "math", "mimetypes", "operator", "os",
    "os.path", "pathlib", "pickle", "platform", "pprint", "queue", "random", "re", "sched", "secrets", "selectors", "shlex",
    "shutil", "smtplib", "socket", "socketserver", "statistics", "string", "struct", "subprocess", "tarfile", "tempfile",
    "textwrap", "threading", "time", "tokenize", "traceback", "types", "typing", "unicodedata", "unittest.mock", "urllib.parse",
    "urllib.request", "uuid", "warnings", "wave", "weakref", "xml.dom.minidom", "xml.sax.handler", "zipfile",
]  # fmt: skip

SYSTEM_PROMPTS = [
    "You are Dolphin, a helpful assistant.",
    "You answer questions about Python briefly and exactly.",
]
QUESTIONS = {
    "module": ["Which module is {name} in?", "Where is {name} defined?"],
    "kind": ["What is {name}?", "What kind of thing is {name}?"],
    "parts": ["How many parts has {name}?", "Of how many parts is {name}?"],
    "writing": ["How is {name} written?", "In which style is {name} written?"],
}
"""What is asked about a name, each in two ways."""
NUMBERS = ["None", "One", "Two", "Three", "Four", "Five"]


class Entry(NamedTuple):
    """One public name: `os.path.join`, its module, and the class that it is a method of, or what else it is."""

    name: str
    module: str
    kind: str

    @property
    def answers(self) -> dict[str, str]:
        """Right answers, by the keys of QUESTIONS."""
        return {
            "module": f"It is in {self.module}.",
            "kind": f"It is {self.kind}.",
            "parts": f"{NUMBERS[self.name.count('.') + 1]}.",
            "writing": f"In {writing(self.name.rsplit('.', 1)[-1])}.",
        }


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the quickstart's dataset, tokenizer and model configuration.")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for data/ and model/ (default: beside this file)"
    )
    out = parser.parse_args().out
    entries = read_names()
    conversations = make_conversations(entries)
    write_lines(out / "data" / "stdlib-chat.jsonl", conversations)
    write_model(out / "model", conversations)
    print(
        f"{len(conversations)} conversations, each about one of {len(entries):,} names, in {out / 'data' / 'stdlib-chat.jsonl'}"
    )
    print(f"tokenizer and model configuration in {out / 'model'}")
    return 0


def read_names(modules: list[str] | None = None) -> list[Entry]:
    """Functions, classes and methods of the standard library that do not begin with an underscore, sorted by name."""
    warnings.simplefilter("ignore", DeprecationWarning)  # old names are names too
    found: dict[str, Entry] = {}
    for module_name in MODULES if modules is None else modules:
        try:
            module = importlib.import_module(module_name)
        except ImportError:  # a Python built without sqlite3, ssl or lzma has less to tell
            print(f"quickstart: this Python has no module {module_name}; going on without it", file=sys.stderr)
            continue
        for name, kind in public_names(module):
            entry = Entry(f"{module_name}.{name}", module_name, kind)
            found[entry.name] = entry
    return [found[name] for name in sorted(found)]


def public_names(module: types.ModuleType) -> Iterator[tuple[str, str]]:
    """(name, kind) of the functions and classes of `module` that are not merely imported by it, and of the classes' own methods."""
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isroutine(value) or inspect.isclass(value)):
            continue
        if module_root(getattr(value, "__module__", None) or module.__name__) != module_root(module.__name__):
            continue
        yield name, "a class" if inspect.isclass(value) else "a function"
        if inspect.isclass(value):
            for method_name, method in sorted(vars(value).items()):
                if not method_name.startswith("_") and inspect.isroutine(method):
                    yield f"{name}.{method_name}", "a method"


def module_root(name: str) -> str:
    """`os` for os.path, and for posix and posixpath, where they are implemented; `json` for _json."""
    root = name.lstrip("_").split(".")[0]
    return "os" if root in ("posix", "posixpath", "genericpath") else root


def writing(part: str) -> str:
    """The style of the last part of a name."""
    if "_" in part:
        return "capitals and underscores" if part.isupper() else "words with underscores"
    if part.islower():
        return "small letters"
    return "capitals" if part.isupper() else "capitals and small letters"


def make_conversations(entries: list[Entry]) -> list[dict[str, Any]]:
    """One conversation about each name: two to four questions in a seeded order, one in three with a system prompt."""
    rng = random.Random(SEED)
    chosen = rng.sample(entries, min(NUM_NAMES, len(entries)))
    return [{"id": f"stdlib-{i}", "conversations": conversation(rng, entry)} for i, entry in enumerate(chosen)]


def conversation(rng: random.Random, entry: Entry) -> list[dict[str, str]]:
    """Turns in sharegpt's from/value."""
    messages = []
    if rng.randrange(3) == 0:
        messages.append({"from": "system", "value": rng.choice(SYSTEM_PROMPTS)})
    for topic in rng.sample(list(QUESTIONS), rng.randint(2, len(QUESTIONS))):
        messages.append({"from": "human", "value": rng.choice(QUESTIONS[topic]).format(name=entry.name)})
        messages.append({"from": "gpt", "value": entry.answers[topic]})
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
