"""What transformers says of a model that the table of families does not know: asked once of a process of the trainer, then kept.

Owns the cache (by the content of config.json and the version of transformers) and the question. Refuses to interpret the answer.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.run import python
from trainer.run.exits import BadInput
from trainer.run.run_folder import make_private, write_atomic

TIMEOUT_S = 300
FORMAT = 1
"""Raised where the answer's meaning changes, so that what an older version kept is asked again."""


def is_possible() -> bool:
    """Whether the trainer's packages are installed here."""
    return importlib.util.find_spec("torch") is not None and importlib.util.find_spec("transformers") is not None


def inspected(folder: Path, cache: Path, *, may_ask: bool) -> dict[str, Any] | None:
    """The facts that `trainer.model.inspect` tells of the model in `folder`, from the folder `cache` where they are there.

    None where they are not and may not or cannot be asked for. BadInput where transformers cannot build such a model.
    """
    if not is_possible():
        return None
    text = (folder / "config.json").read_bytes()
    key = hashlib.sha256(b"%d %s " % (FORMAT, version("transformers").encode()) + text).hexdigest()
    kept = cache / "models" / f"{key}.json"
    try:
        facts: dict[str, Any] = json.loads(kept.read_bytes())
        return facts
    except (OSError, ValueError):
        if not may_ask:
            return None
    print(f"asking transformers what {folder} is (once; kept in {kept.parent})", file=sys.stderr, flush=True)
    command = python.command("trainer.model.inspect", str(folder))
    environment = python.environment({**os.environ, "PYTHONWARNINGS": "ignore"})
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BadInput(f"{folder}: transformers did not answer within {TIMEOUT_S} s") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise BadInput(f"{folder / 'config.json'}: transformers {version('transformers')} cannot build it: {reason}")
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    make_private(kept.parent)
    write_atomic(kept, json.dumps(facts))
    return facts
