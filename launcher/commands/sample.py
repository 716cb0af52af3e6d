"""`dolphin sample`: ask a model one question. Owns where the model comes from; the trainer's own module loads and asks it."""

from __future__ import annotations

import importlib.util
import os
import subprocess

from launcher.commands.model_source import model_folder
from launcher.runs.errors import BadUsage, LauncherError
from trainer.run import python
from trainer.run.exits import ExitCode


def sample_command(source: str, prompt: str | None, base: str | None, max_tokens: int) -> int:
    """The answer on standard output; without a prompt a held-out question of the run, its answer, and the one expected."""
    if importlib.util.find_spec("transformers") is None:
        raise BadUsage("dolphin sample needs the trainer: pip install 'dolphin-launcher[train]'")
    options = ["--max-tokens", str(max_tokens)]
    options += [] if prompt is None else ["--prompt", prompt]
    options += [] if base is None else ["--base", base]
    with model_folder(source) as folder:
        command = python.command("trainer.export.sample", str(folder.absolute()), *options)
        done = subprocess.run(command, env=python.environment(dict(os.environ)), check=False)
    if done.returncode == ExitCode.BAD_INPUT:
        raise BadUsage(f"{source} cannot be asked; the reason is above")
    if done.returncode:
        raise LauncherError(f"{source} gave no answer; the reason is above")
    return 0
