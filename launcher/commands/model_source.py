"""The folder that a command reads a model from: one that is named, or what a run left, wherever it is.

Refuses to know what is in it; `trainer.export.load_folder` loads it, a model or an adapter beside its base.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launcher.backends.base import get_backend
from launcher.runs import ledger


@contextlib.contextmanager
def model_folder(source: str) -> Iterator[Path]:
    """The folder `source`, or of the run with that id (or its beginning) the finished model: in its place where it is on this
    machine, else as a copy that is gone afterwards. Raises what the ledger and the backend raise where there is none."""
    if Path(source).is_dir():
        yield Path(source)
        return
    record = ledger.find(source)
    outcome = record.files.read_outcome() or {}
    if outcome.get("state") == "done" and record.files.model.is_dir():
        yield record.files.model
        return
    with tempfile.TemporaryDirectory(prefix="dolphin-model-") as scratch:
        yield Path(get_backend(record.backend).fetch(record, "model", Path(scratch) / "model"))
