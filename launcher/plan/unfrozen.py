"""The resolving of `train.unfrozen: {spectrum: ...}` into plain patterns, which is what a plan counts and a node is given.

Owns the cache of scans. Refuses to measure: that takes torch, so the trainer's scanner runs as a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

from launcher.models.hub_cache import local_folder
from launcher.models.spectrum import read_snr, select
from launcher.runs.errors import BadUsage, LauncherError
from launcher.runs.ledger import cache_dir
from trainer.run import python
from trainer.run.exits import BadInput, ExitCode
from trainer.run.settings.train import UnfrozenSpec
from trainer.run.spec import TrainSpec
from trainer.run.weights_index import fingerprint, stored_tensors

Spec = TypeVar("Spec", bound=TrainSpec)
"""A TrainSpec, or the JobSpec that holds one."""


def resolve_unfrozen(spec: TrainSpec) -> tuple[str, ...] | None:
    """`train.unfrozen` as plain patterns: what is written, or the written patterns and then the selected layers.

    Scans the model first where `snr` names one; the scan is kept by the content of its weights.
    """
    unfrozen = spec.train.unfrozen
    if not isinstance(unfrozen, UnfrozenSpec):
        return unfrozen
    source = unfrozen.spectrum.snr
    path = Path(source) if Path(source).is_file() else _scanned(source, spec.model.revision)
    return (*unfrozen.patterns, *select(read_snr(path), unfrozen.spectrum.top))


def with_resolved_unfrozen(spec: Spec) -> Spec:
    """The same specification with `train.unfrozen` as plain patterns: what the node is given."""
    if not isinstance(spec.train.unfrozen, UnfrozenSpec):
        return spec
    train = spec.train.model_copy(update={"unfrozen": resolve_unfrozen(spec)})
    return spec.model_copy(update={"train": train})


def _scanned(model: str, revision: str | None) -> Path:
    """The SNR file of `model` in the cache, measured now where it is not there."""
    folder, cache = local_folder(model, revision), cache_dir() / "spectrum"
    if folder is not None:
        try:
            kept = cache / f"{fingerprint(stored_tensors(folder))}.json"
        except BadInput as error:
            raise BadUsage(f"train.unfrozen.spectrum.snr: {error}") from None
        if kept.is_file():
            return kept
    print(f"measuring the signal-to-noise ratios of {model} (once; kept in {cache})", file=sys.stderr)
    printed = scan(model, revision, ["--cache", str(cache)])
    return Path(printed.strip().splitlines()[-1])


def scan(model: str, revision: str | None, options: list[str]) -> str:
    """Run the trainer's scanner; its standard output."""
    if importlib.util.find_spec("torch") is None:
        raise BadUsage(
            "a scan needs torch, which is not installed here: pip install 'dolphin-launcher[train]', "
            "or give an SNR file scanned elsewhere"
        )
    command = python.command("trainer.model.spectrum", model, *options)
    command += [] if revision is None else ["--revision", revision]
    done = subprocess.run(
        command, env=python.environment(dict(os.environ)), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode == ExitCode.BAD_INPUT:
        raise BadUsage(f"{model}: cannot be scanned; the reason is above")
    if done.returncode:
        raise LauncherError(f"the scan of {model} ended with exit code {done.returncode}; start it again to go on")
    return done.stdout
