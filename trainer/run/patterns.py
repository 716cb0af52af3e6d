"""Patterns over parameter names: which parameters an `unfrozen` list trains. Pure: knows names, not tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trainer.run.bounded import TookTooLong, cpu_seconds

PARAMETER_FREE = ("rotary_emb",)
"""Modules without parameters that pattern lists name by habit: hitting nothing there is no mistake."""


MATCH_CPU_S = 5.0
"""A hundred patterns over a thousand names take milliseconds."""


class Matches(NamedTuple):
    trainable: tuple[str, ...]
    """Names hit by at least one pattern, in the model's order."""
    missed: tuple[str, ...]
    """Patterns that hit no parameter, those for parameter-free modules left out."""
    idle: tuple[str, ...]
    """Patterns for modules that have no parameters."""


def match(patterns: Sequence[str], names: Iterable[str]) -> Matches:
    """Apply `patterns` as `re.search` to parameter `names`. Raises re.error for a pattern that is no expression, or that has
    found nothing after MATCH_CPU_S of searching."""
    names = list(names)
    hit: set[str] = set()
    missed: list[str] = []
    idle: list[str] = []
    for pattern in patterns:
        try:
            with cpu_seconds(MATCH_CPU_S):
                expression = re.compile(pattern)
                found = {name for name in names if expression.search(name)}
        except (OverflowError, RecursionError) as error:
            raise re.error(f"it is too large ({error})", pattern) from error
        except TookTooLong:
            raise re.error("it does not come to an end; are there repeats within a repeat?", pattern) from None
        hit |= found
        if not found:
            (idle if any(module in pattern for module in PARAMETER_FREE) else missed).append(pattern)
    return Matches(tuple(name for name in names if name in hit), tuple(missed), tuple(idle))
