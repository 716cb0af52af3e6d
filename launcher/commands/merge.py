"""`dolphin merge`: one model of an adapter and its base. Owns where the adapter comes from; the trainer's own module merges."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

from launcher.backends.base import get_backend
from launcher.runs import ledger
from launcher.runs.errors import BadUsage, LauncherError
from trainer.run import python
from trainer.run.exits import ExitCode

CONFIG, INNER = "adapter_config.json", "adapter"


def merge_command(source: str, target: Path) -> int:
    """Merge the adapter of a run, or of a folder, into `target`, which must not exist; its path on standard output."""
    if importlib.util.find_spec("peft") is None:
        raise BadUsage("dolphin merge needs the trainer and peft: pip install 'dolphin-launcher[train,lora]'")
    if target.exists():
        raise BadUsage(f"{target} exists; name a folder that does not")
    if Path(source).is_dir():
        return _merge(_adapter_in(Path(source)), target)
    record = ledger.find(source)
    with tempfile.TemporaryDirectory(prefix="dolphin-merge-") as scratch:
        folder = get_backend(record.backend).fetch(record, "model", Path(scratch) / "model")
        return _merge(_adapter_in(Path(folder)), target)


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
