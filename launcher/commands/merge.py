"""`dolphin merge`: one model of an adapter and its base. Owns where the adapter comes from; the trainer's own module merges."""

from __future__ import annotations

from pathlib import Path

from launcher.commands import finished_model, trainer_side
from launcher.runs.errors import BadUsage
from trainer.run.adapter_files import CONFIG, INNER


def merge_command(source: str, target: Path) -> int:
    """Merge the adapter of a run, or of a folder, into `target`, which must not exist; its path on standard output."""
    trainer_side.require("merge", "peft", extras="train,lora")
    if target.exists():
        raise BadUsage(f"{target} exists; name a folder that does not")
    with finished_model.read(source) as folder:
        adapter = _adapter_in(folder)
        trainer_side.run(
            "trainer.export.merge", str(adapter), str(target.absolute()), failed=f"{adapter} was not merged"
        )
    print(target)
    return 0


def _adapter_in(folder: Path) -> Path:
    for candidate in (folder, folder / INNER):
        if (candidate / CONFIG).is_file():
            return candidate
    raise BadUsage(f"{folder}: holds no {CONFIG}: it is no adapter, and there is nothing to merge")
