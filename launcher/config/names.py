"""What a name in a job file is: a URL, a hub id, or a path of this machine. Looks at the text alone, at no file."""

from __future__ import annotations

import re

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
WITH_CREDENTIALS = re.compile(r"^(?!hf://)[a-z][a-z0-9+.-]*://[^/?#\s]*@", re.IGNORECASE)
"""A URL that says who asks: user@host, user:password@host. The hub's revisions stand behind an @ too."""
URL = re.compile(r"^[a-z][a-z0-9+.-]*://")


def looks_like_path(text: str) -> bool:
    """Whether a model's name can only be a folder: it has the signs of a path, or more parts than a hub id."""
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..") or not HUB_ID.match(text)
