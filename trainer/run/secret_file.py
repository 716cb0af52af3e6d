"""Secrets that arrive in a file: read into the environment once, and the file removed before anything else happens.

For containers, whose environment anyone with access to the engine can inspect for as long as they exist. Owns the file's
form: one JSON object of name and value. Refuses to know who wrote it.
"""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from pathlib import Path

from trainer.run.exits import BadInput
from trainer.run.redaction import NAMES, environment_changed

VARIABLE = "DOLPHIN_SECRETS_FILE"


def take(environment: MutableMapping[str, str]) -> None:
    """Move the secrets of the file that VARIABLE names into `environment`; nothing where it names none.

    Raises BadInput, without a value in the message, where the file cannot be read or removed.
    """
    name = environment.pop(VARIABLE, None)
    if name is None:
        return
    path = Path(name)
    try:
        content = path.read_bytes()
        path.unlink()
    except OSError as error:
        raise BadInput(f"{path}: the run's secrets: {error.strerror}; `dolphin resume` hands them over again") from None
    try:
        secrets = json.loads(content)
    except ValueError:
        secrets = None
    if not isinstance(secrets, dict) or not all(isinstance(value, str) for value in secrets.values()):
        raise BadInput(f"{path}: the run's secrets are no JSON object of strings; write it with the launcher")
    environment.update(secrets)
    called = set(filter(None, environment.get(NAMES, "").split(",")))
    environment[NAMES] = ",".join(sorted(called | set(secrets)))
    environment_changed()


def write(path: Path, secrets: dict[str, str]) -> None:
    """Write what `take` reads, readable by its owner alone. Flushed, so that a full disk is known here."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        json.dump(secrets, handle)
        handle.flush()
        os.fsync(handle.fileno())
