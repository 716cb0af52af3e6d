"""Runs a module of the trainer for a command, in a process of its own, and says in a line what it needs. Loads nothing of it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess

from launcher.runs.errors import BadUsage, LauncherError
from trainer.run import python
from trainer.run.exits import ExitCode


def require(command: str, *packages: str, extras: str) -> None:
    """Raises BadUsage where a package is missing. `extras` is what pip is told, as `train,gguf`."""
    lacking = [package for package in packages if importlib.util.find_spec(package) is None]
    if lacking:
        raise BadUsage(
            f"dolphin {command} needs the trainer ({', '.join(lacking)} not installed): pip install 'dolphin-launcher[{extras}]'"
        )


def run(module: str, *arguments: str, failed: str) -> None:
    """Run `module` with this terminal; an interrupt is the module's to answer. Raises BadUsage or LauncherError with `failed` where
    it says, on standard error, that it could not be done, and KeyboardInterrupt where an interrupt ended it, whatever it then
    exits with."""
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))  # no handler is handed on
    try:
        done = subprocess.run(python.command(module, *arguments), env=python.environment(dict(os.environ)), check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    if done.returncode == -signal.SIGINT or (interrupts and done.returncode):
        raise KeyboardInterrupt
    if done.returncode == ExitCode.BAD_INPUT:
        raise BadUsage(f"{failed}; the reason is above")
    if done.returncode:
        raise LauncherError(f"{failed}; the reason is above")
