"""Where the model is that a command is asked about: a folder that is named, or that of a run. Loads no weights.

Refuses to know what is done with it; `trainer.export.load_folder` loads it, a model or an adapter beside its base.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.backends.base import get_backend
from launcher.runs import ledger
from launcher.runs.errors import BadUsage
from trainer.run import adapter_files


@dataclass(frozen=True, slots=True)
class FinishedModel:
    folder: Path
    """Absolute."""
    name: str
    """The job's, or the folder's."""
    run_dir: Path | None
    """The run's folder; None of a model that is no run's."""


def find(source: str) -> FinishedModel:
    """Of a run (its id or a beginning of it) or a model folder, which a command may write into. Raises BadUsage, with what to do,
    where there is none here."""
    found = _here(source)
    if isinstance(found, ledger.RunRecord):
        raise BadUsage(
            f"{found.run_id}: its model is not on this machine; `dolphin fetch {found.run_id} DIR` brings it home, and DIR can "
            "stand in place of the run"
        )
    return found


@contextlib.contextmanager
def read(source: str) -> Iterator[Path]:
    """The folder of a model that is only read: as `find`, else a copy of the run's that is gone afterwards. Raises what `find` and
    the backend raise where there is none."""
    found = _here(source)
    if isinstance(found, FinishedModel):
        yield found.folder
        return
    with tempfile.TemporaryDirectory(prefix="dolphin-model-") as scratch:
        yield Path(get_backend(found.backend).fetch(found, "model", Path(scratch) / "model"))


def _here(source: str) -> FinishedModel | ledger.RunRecord:
    """The model, or the run whose model is not on this machine."""
    if Path(source).is_dir():
        folder = Path(source).absolute()
        if not any((folder / name).is_file() for name in ("config.json", adapter_files.CONFIG)):
            raise BadUsage(f"{folder}: holds no config.json and no {adapter_files.CONFIG}: it is no model folder")
        return FinishedModel(folder, folder.name, None)
    record = ledger.find(source)
    model = record.files.model
    return FinishedModel(model, record.name, record.files.path) if model.is_dir() else record
