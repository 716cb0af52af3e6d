"""Where a model's files are on this machine: its folder, or Hugging Face's cache. Refuses to use the network."""

from __future__ import annotations

import os
from pathlib import Path


def local_folder(base: str, revision: str | None = None) -> Path | None:
    """The model's folder: itself, or the newest snapshot in the Hugging Face cache. None where neither is here."""
    if Path(base).is_dir():
        return Path(base)
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    cache = Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub"))))
    repository = cache / f"models--{base.replace('/', '--')}"
    try:
        commit = (repository / "refs" / (revision or "main")).read_text().strip()
    except OSError:
        commit = revision or ""
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and (snapshot / "config.json").exists() else None
