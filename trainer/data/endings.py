"""Endings: which tokens end an answer, and where the end of a turn is in a rendered text.

Owns the tokens that generation stops at (the tokenizer's and the base model's) and the markers that a chat template
writes behind the last answer. A model stops where it was trained to write one of them; the export makes every one of
them a stop token. Refuses to know masks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.anchors import MARKINGS, Marker
from trainer.data.template import TEMPLATE_ERRORS, ChatTemplate
from trainer.run.settings.model import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PROBES = (("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant", "user", "assistant"))


class Endings:
    """The markers of one template: its own and the stop tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stops: list[int], template: ChatTemplate) -> None:
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
        self._added = _any_of(added)
        end = tokenizer.eos_token
        known = [tokenizer.convert_ids_to_tokens(number) for number in stops]
        self.stops: tuple[str, ...] = tuple(dict.fromkeys([end, *(token for token in known if token)]))
        own = self._of_template(template)
        self.markers: tuple[str, ...] = tuple(dict.fromkeys([*([own] if own else []), *self.stops]))
        """Longest first does not matter: the earliest in the text is taken."""
        self._markers = _any_of(set(self.markers))

    def of_passage(self, passage: str) -> str | None:
        """The marker that a trained passage ends with, white space aside."""
        passage = passage.rstrip()
        return next((marker for marker in self.markers if passage.endswith(marker)), None)

    def behind(self, text: str, start: int, end: int) -> tuple[int, str] | None:
        """The first marker in text[start:end]: where it ends, and which it is."""
        found = self._markers.search(text, start, end)
        return (found.end(), found.group()) if found else None

    def right_behind(self, text: str, start: int) -> tuple[int, str] | None:
        """As `behind`, where nothing but white space is between."""
        at = start
        while at < len(text) and text[at].isspace():
            at += 1
        found = self._markers.match(text, at)
        return (found.end(), found.group()) if found else None

    def whole(self, text: str, at: int) -> int:
        """`at`, or where an added token begins that it would cut."""
        found = next(
            (match for match in self._added.finditer(text, max(0, at - 64), at + 64) if match.end() > at), None
        )
        return min(at, found.start()) if found else at

    def _of_template(self, template: ChatTemplate) -> str | None:
        """What the template writes behind the last answer, if it is one token."""
        for roles in _PROBES:
            messages = [{"role": role, "content": f"word{number}"} for number, role in enumerate(roles)]
            marker = Marker.for_text("")
            assert marker is not None
            marked = marker.mark(messages, MARKINGS[0])
            assert marked is not None
            try:
                found = marker.locate(template.render(marked))
            except TEMPLATE_ERRORS:
                continue
            if found is None or not found[1] or found[1][-1].anchor.message != len(messages) - 1:
                continue
            text, places = found
            behind = text[places[-1].end :]
            first = self._added.match(behind.lstrip())
            if first is not None:
                return self._closed_by(first.group(), behind.lstrip()[first.end() :], template)
            return next((stop for stop in self.stops if stop in behind), None)
        return None

    def _closed_by(self, first: str, rest: str, template: ChatTemplate) -> str:
        """`first`, or the stop token right behind it, where every answer has both: some families close what is said to people,
        and then the turn."""
        then = self._added.match(rest)
        if first in self.stops or then is None or then.group() not in self.stops:
            return first
        roles = _PROBES[-1]
        try:
            text = template.render([{"role": role, "content": f"word{number}"} for number, role in enumerate(roles)])
        except TEMPLATE_ERRORS:
            return first
        return then.group() if text.count(first + then.group()) >= roles.count("assistant") else first


def stop_tokens(model: ModelSpec, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that generation stops at, ascending: the tokenizer's end token and what the base model's files name."""
    stops = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        value = _settings(model, name).get("eos_token_id")
        listed = value if isinstance(value, list) else [value]
        stops.update(number for number in listed if isinstance(number, int) and 0 <= number < len(tokenizer))
    return sorted(stops)


def _settings(model: ModelSpec, name: str) -> dict[str, Any]:
    """A JSON file of the base model; empty where it has none."""
    path: str | Path | None = Path(model.base) / name
    if not Path(model.base).is_dir():
        from transformers.utils import cached_file

        path = cached_file(
            model.base,
            name,
            revision=model.revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    if path is None or not Path(path).is_file():
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    ordered = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
