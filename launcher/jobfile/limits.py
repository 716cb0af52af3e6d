"""The words of `deadline` and `notify`: durations, moments with a zone, URLs of hooks. Pure: the caller tells the clock.

Owns what each may look like, and what a hook's URL gives away. Refuses to know what becomes of a run at its limits.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

from launcher.units import parse_seconds

_NAME = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\}")
_HOSTS_OF_SECRETS = {
    "hooks.slack.com": "SLACK_WEBHOOK", "hooks.slack-gov.com": "SLACK_WEBHOOK",
    "discord.com": "DISCORD_WEBHOOK", "discordapp.com": "DISCORD_WEBHOOK",
}  # fmt: skip
"""Hosts whose hooks have no other key than their URL, and what such a secret may be called."""
_RANDOM = re.compile(r"(?=[^/]*[0-9])(?=[^/]*[A-Za-z])[A-Za-z0-9_-]{20,}")
"""A part of a path that nobody would have chosen as a name."""
_KEYS = re.compile(r"(token|key|secret|sig|signature|password|auth)$", re.IGNORECASE)
_FORMS = "write a duration (72h, 90m, 3d) or a time with its zone (2026-12-01T18:00+01:00)"


def deadline_text(text: str) -> str:
    """A `deadline` as it may stand in a job. ValueError, for a person, for anything else."""
    if _duration_s(text) is None:
        _moment(text)
    return text


def moment_of(deadline: str, now: datetime) -> datetime:
    """The moment that a deadline means, in UTC: a duration is counted from `now`, which has a zone."""
    duration_s = _duration_s(deadline)
    return _moment(deadline) if duration_s is None else now.astimezone(UTC) + timedelta(seconds=duration_s)


def as_moment(at: datetime) -> str:
    """How a moment is written down in a run's job: in UTC, to the second."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def hook_text(text: str) -> str:
    """An entry of `notify` as it may stand in a job. ValueError, without the URL in it, for anything else."""
    if _NAME.fullmatch(text):
        return text
    if "${" in text or text.startswith("$"):
        raise ValueError("takes the name of a secret alone, as ${SLACK_WEBHOOK}: its value is the whole URL")
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("is no URL: write https://HOST/PATH, or ${NAME} of a secret whose value is one")
    if name := _secret_of(text):
        raise ValueError(
            f"holds a URL that is a secret: whoever has it can post there. Write ${{{name}}}, and `export {name}=...` in your shell"
        )
    return text


def hook_value(value: str) -> str | None:
    """What is wrong with the value of a secret that `notify` names, without it in the message; None where it is a URL."""
    url = urlsplit(value.strip())
    return (
        None if url.scheme in ("http", "https") and url.hostname else "holds no URL: it must be https://HOST/PATH whole"
    )


def secret_names(notify: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the secrets that hold a hook's URL."""
    return tuple(found[1] for text in notify if (found := _NAME.fullmatch(text)))


def _secret_of(text: str) -> str | None:
    """What the secret may be called that this URL is; None for one that gives nothing away."""
    url = urlsplit(text)
    host = (url.hostname or "").lower()
    for known, name in _HOSTS_OF_SECRETS.items():
        if host == known or host.endswith("." + known):
            return name
    keys = any(_KEYS.search(key) and value for key, value in parse_qsl(url.query))
    is_random = any(_RANDOM.fullmatch(part) for part in url.path.split("/"))
    return "WEBHOOK" if keys or is_random or url.username or url.password else None


def _duration_s(text: str) -> float | None:
    """Seconds; None for what is no duration. ValueError for one that leaves no time."""
    try:
        seconds = parse_seconds(text)
    except ValueError:
        return None
    if seconds <= 0:
        raise ValueError(f"leaves no time; {_FORMS}")
    if seconds > 10 * 365 * 86_400:
        raise ValueError(f"is years away; {_FORMS}")
    return seconds


def _moment(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"is no time; {_FORMS}") from None
    if at.tzinfo is None:
        raise ValueError(
            f"has no zone, and nodes are in another one than you: write {text.strip()}Z for UTC, or +01:00"
        )
    return at.astimezone(UTC)
