"""Loads the tokenizer that a job asks for: special tokens, added tokens, chat template and padding, settled and checked.

Owns what `model.tokenizer`, `model.special_tokens`, `model.added_tokens` and `model.chat_template` mean. Refuses to know
weights and data, and does not import torch unless the tokenizer's own class needs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.run.chat_templates.registry import TEMPLATES
from trainer.run.exits import BadInput
from trainer.run.settings.model import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RESERVED_PAD_TOKENS = (
    "<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<unused0>",
    "<|vision_pad|>", "<|reserved_special_token_0|>",
)  # fmt: skip
"""Tokens that vocabularies set aside and that no text contains: padding falls back to the first that is there."""

CUT_PROBES = (
    "What is two plus two?  It's 4.", " Größe, ça va; привет 你好 🐬 e\u0301", "def f(x):\n\n    return x[0] + 12345.678\r\n\t# DONE",
    "<b>A_b</b>   trailing ", "\n\n", "'Twas I'LL we've 1st 2024-07-26",
)  # fmt: skip
"""Texts in which the ways of cutting text differ: contractions, digits, runs of white space, accents, other scripts."""

PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(model: ModelSpec) -> PreTrainedTokenizerFast:
    """The job's tokenizer, complete: end, padding and chat template are there, and padding is not the end token.

    Raises BadInput, with what to set, where one of them is missing or the tokenizer cannot be loaded.
    """
    name = model.tokenizer or model.base
    revision = model.revision if model.tokenizer is None else None
    tokenizer = _load(name, revision, model.trust_remote_code)
    special = {key: value for key, value in model.special_tokens.model_dump().items() if value is not None}
    if special:
        tokenizer.add_special_tokens(special)
    if model.added_tokens:
        tokenizer.add_tokens(list(model.added_tokens), special_tokens=True)
    tokenizer.chat_template = resolve_template(model.chat_template, tokenizer.chat_template, name)
    if tokenizer.eos_token is None:
        raise BadInput(f"the tokenizer of {name} has no end-of-text token; set model.special_tokens.eos_token")
    _settle_padding(tokenizer, name)
    _check_tokens(tokenizer, model.chat_template, name)
    return tokenizer


def added_token_ids(model: ModelSpec, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Tokens that the job adds to the vocabulary and that texts are made of: all but the padding."""
    stated = {*model.added_tokens, *(value for value in model.special_tokens.model_dump().values() if value)}
    if not stated:
        return ()
    before = _load(
        model.tokenizer or model.base, model.revision if model.tokenizer is None else None, model.trust_remote_code
    )
    known, now = before.get_vocab(), tokenizer.get_vocab()
    return tuple(sorted(now[token] for token in stated - known.keys() if now[token] != tokenizer.pad_token_id))


def resolve_template(setting: str, own: str | dict[str, str] | None, name: str) -> str | dict[str, str]:
    """The chat template's text for `model.chat_template`; `own` is what the tokenizer brings, which may be several: then
    `default` is one of them, and `tool_use` is taken where a conversation has tools."""
    if setting == "tokenizer":
        if not own or (isinstance(own, dict) and not own.get("default")):
            raise BadInput(
                f"the tokenizer of {name} has no chat template; set model.chat_template to `chatml` or another name "
                f"({', '.join(TEMPLATES)}), to a .jinja file or to a template"
            )
        return own
    if setting in TEMPLATES:
        return TEMPLATES[setting].text
    if "{%" in setting or "{{" in setting:
        return setting
    try:
        return Path(setting).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"model.chat_template '{setting}' cannot be read ({error.strerror}); "
            f"write `tokenizer`, a name ({', '.join(TEMPLATES)}), the path of a .jinja file, or the template itself"
        ) from error


def _load(name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerFast:
    options: dict[str, Any] = {"revision": revision} if revision else {}
    from transformers import PreTrainedTokenizerFast

    try:
        if _is_plain(name):
            return PreTrainedTokenizerFast.from_pretrained(name, **options)
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
        except (TypeError, KeyError, AttributeError):  # of a class that cannot make sense of the file
            tokenizer = None
        if tokenizer is None or not _cuts_as_its_file_says(tokenizer, name, revision):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **options)
    except (OSError, ValueError, TypeError, ImportError, json.JSONDecodeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"the tokenizer of {name} cannot be loaded: {first_line}; set model.tokenizer to a folder or hub id that has one"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise BadInput(f"the tokenizer of {name} has no tokenizer.json; set model.tokenizer to one that has")
    return tokenizer


def _cuts_as_its_file_says(tokenizer: Any, name: str, revision: str | None) -> bool:
    """Whether a tokenizer gives the ids that its tokenizer.json gives. One that is labelled with another family's class
    gets that class's rules for cutting text (transformers 5), and other ids than its model was trained on, in silence."""
    from tokenizers import Tokenizer
    from transformers.utils import cached_file

    if "auto_map" in tokenizer.init_kwargs or not getattr(tokenizer, "is_fast", False):
        return True
    path = cached_file(name, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return True
    own = Tokenizer.from_file(str(path))
    return all(
        tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        == own.encode(text, add_special_tokens=False).ids
        for text in CUT_PROBES
    )


def _is_plain(name: str) -> bool:
    """A folder whose tokenizer has no class of its own: loading it directly spares the import of every model (and torch)."""
    folder = Path(name)
    if not (folder / "tokenizer.json").is_file():
        return False
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return True
    settings = json.loads(config.read_text(encoding="utf-8"))
    return settings.get("tokenizer_class", PLAIN_CLASSES[0]) in PLAIN_CLASSES and "auto_map" not in settings


def _check_tokens(tokenizer: PreTrainedTokenizerFast, setting: str, name: str) -> None:
    """A format whose markers fall apart into letters is not what the family's tools read, and nothing ends an answer."""
    if setting not in TEMPLATES:
        return
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in TEMPLATES[setting].tokens if token not in vocabulary]
    if missing:
        raise BadInput(
            f"model.chat_template {setting} writes {' '.join(missing)}, no token of the tokenizer of {name}; choose the "
            f"template of its family, or add them: model.added_tokens: {json.dumps(missing, ensure_ascii=False)}"
        )


def _settle_padding(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Padding that is the end token would teach nothing about ending wherever padding is masked, so it is never chosen."""
    vocabulary = tokenizer.get_vocab()
    if tokenizer.pad_token is None:
        reserved = next((token for token in RESERVED_PAD_TOKENS if token in vocabulary), None)
        if reserved is None:
            raise BadInput(
                f"the tokenizer of {name} has no padding token; set model.special_tokens.pad_token "
                "(a new one such as <|pad|> is added to the vocabulary)"
            )
        tokenizer.pad_token = reserved
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise BadInput(
            f"the tokenizer of {name} pads with its end token {tokenizer.eos_token}; "
            "set model.special_tokens.pad_token to another token, such as <|pad|>"
        )
