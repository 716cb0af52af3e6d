"""Values of secrets taken out of what is written: log lines, events, outcomes. Knows the environment alone.

Libraries print request headers, URLs and environments when they fail, and a log is sent on without being read.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping

NAMES = "DOLPHIN_SECRET_NAMES"
"""Environment variable: names, with commas between them, of the variables that the job calls secrets."""
_LIKELY = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY)$", re.IGNORECASE)
_SHORTEST, _SHORTEST_LIKELY = 4, 8
"""A value that is shorter would be found in innocent words."""


def redact(text: str) -> str:
    """`text` with `<NAME>` in place of the value of each secret of this process's environment."""
    pattern, names = _of_environment()
    return text if pattern is None else pattern.sub(lambda match: f"<{names[match.group()]}>", text)


def values_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Value to name, of what is secret: what is called so, and what is named like a secret."""
    called = set(filter(None, environment.get(NAMES, "").split(",")))
    found: dict[str, str] = {}
    for name, value in environment.items():
        if name == NAMES or not (name in called or _LIKELY.search(name)):
            continue
        shortest = _SHORTEST if name in called else _SHORTEST_LIKELY
        for part in {value, *value.splitlines()}:  # a key of many lines is printed line by line
            if len(part.strip()) >= shortest and not (name not in called and part.startswith("/")):
                found.setdefault(part.strip(), name)
    return found


@functools.cache
def _of_environment() -> tuple[re.Pattern[str] | None, dict[str, str]]:
    names = values_of(os.environ)
    longest_first = sorted(names, key=len, reverse=True)
    return (re.compile("|".join(map(re.escape, longest_first))) if names else None), names


def environment_changed() -> None:
    """Call it after the environment got secrets."""
    _of_environment.cache_clear()
