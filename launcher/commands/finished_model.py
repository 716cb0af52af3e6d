"""Where the model is that a command is asked about: a folder, or that of a run which is on this machine. Loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.runs import ledger
from launcher.runs.errors import BadUsage


@dataclass(frozen=True, slots=True)
class FinishedModel:
    folder: Path
    name: str
    """The job's, or the folder's."""
    run_dir: Path | None
    """The run's folder; None of a model that is no run's."""


def find(source: str) -> FinishedModel:
    """Of a run (its id or a beginning of it) or a model folder. Raises BadUsage, with what to do, where there is none here."""
    if Path(source).is_dir():
        folder = Path(source).absolute()
        if not (folder / "config.json").is_file():
            raise BadUsage(f"{folder}: holds no config.json: it is no model folder")
        return FinishedModel(folder, folder.name, None)
    record = ledger.find(source)
    model = record.files.model
    if not model.is_dir():
        raise BadUsage(
            f"{record.run_id}: its model is not on this machine; `dolphin fetch {record.run_id} DIR` brings it home, and DIR can "
            "stand in place of the run"
        )
    return FinishedModel(model, record.name, record.files.path)
