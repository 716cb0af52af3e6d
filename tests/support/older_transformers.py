"""transformers 4.57 beside the installed one: a folder for PYTHONPATH, filled by pip once and kept for later test runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from tests.support.require import lacking

PINS = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2")
PIP_TIMEOUT_S = 180


def folder() -> Path:
    """The folder that shadows the installed transformers. Skips, with the reason, where pip cannot reach the packages."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dolphin-tests"
    caches.mkdir(parents=True, exist_ok=True)
    target = caches / f"{PINS[0].replace('==', '-')}-py{sys.version_info.major}.{sys.version_info.minor}"
    with FileLock(caches / f"{target.name}.lock"):
        if not target.is_dir():
            partial = target.with_suffix(".partial")
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(partial)]
            try:
                subprocess.run([*command, *PINS], check=True, capture_output=True, text=True, timeout=PIP_TIMEOUT_S)
            except subprocess.CalledProcessError as error:
                lacking("older-transformers", f"pip cannot install {PINS[0]}: {error.stderr.strip().splitlines()[-1:]}")
            except subprocess.TimeoutExpired:
                lacking("older-transformers", f"pip did not install {PINS[0]} within {PIP_TIMEOUT_S} s")
            partial.rename(target)
    return target


def run(script: str, *arguments: str) -> str:
    """Standard output of a script under the older transformers, offline."""
    environment = os.environ | {
        "PYTHONPATH": str(folder()),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
