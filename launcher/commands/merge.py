"""`dolphin merge`: one model of an adapter and its base. Owns where the adapter comes from; the trainer's own module merges."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

from launcher.commands.model_source import model_folder
from launcher.runs.errors import BadUsage, LauncherError
from trainer.run import python
from trainer.run.adapter_files import CONFIG, INNER
from trainer.run.exits import ExitCode


def merge_command(source: str, target: Path) -> int:
    """Merge the adapter of a run, or of a folder, into `target`, which must not exist; its path on standard output."""
    if importlib.util.find_spec("peft") is None:
        raise BadUsage("dolphin merge needs the trainer and peft: pip install 'dolphin-launcher[train,lora]'")
    if target.exists():
        raise BadUsage(f"{target} exists; name a folder that does not")
    with model_folder(source) as folder:
        return _merge(_adapter_in(folder), target)


def _adapter_in(folder: Path) -> Path:
    for candidate in (folder, folder / INNER):
        if (candidate / CONFIG).is_file():
            return candidate
    raise BadUsage(f"{folder}: holds no {CONFIG}: it is no adapter, and there is nothing to merge")


def _merge(adapter: Path, target: Path) -> int:
    command = python.command("trainer.export.merge", str(adapter), str(target.absolute()))
    done = subprocess.run(command, env=python.environment(dict(os.environ)), check=False)
    if done.returncode == ExitCode.BAD_INPUT:
        raise BadUsage(f"{adapter} cannot be merged; the reason is above")
    if done.returncode:
        raise LauncherError(f"{adapter} was not merged; the reason is above")
    print(target)
    return 0
