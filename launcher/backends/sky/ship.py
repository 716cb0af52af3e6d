"""What travels to the node with a run, staged in the run's own folder: train.json, the relay, the trainer; the job's files.

SkyPilot leaves out of a folder what git or a .skyignore ignores, and what is a link. So the job's files are staged one by
one, as hard links or copies, in folders that say that nothing is to be left out.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import trainer
from launcher.backends.sky.node import branch, bucket, deadline, instance, relay
from launcher.backends.sky.task import (
    PRICES_FILE,
    STAGED,
    TERMS_FILE,
    Shipment,
    constraints,
    relay_config,
    requirements,
)
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BackendError
from trainer.run.run_folder import TRAIN_FILE
from trainer.run.spec import NodeJob

FOLDER = "ship"
NOTHING_IGNORED = ".skyignore"
"""With this file in a folder SkyPilot asks no .gitignore of it, nor of a repository around it."""

SHIPPED = tuple(Path(str(module.__file__)) for module in (relay, bucket, instance, branch, deadline))
"""What runs on a node without this package: the relay, and the modules that it finds beside it."""


def pack(
    folder: Path, job: JobSpec, train: NodeJob, shipment: Shipment, secret_names: Sequence[str], submission: int = 1
) -> Path:
    """Write the folder anew inside the run's own, the job's files beside it (`task.STAGED`), and return it.

    Raises BackendError where they cannot be staged, or went away since they were listed.
    """
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    (target / NOTHING_IGNORED).write_text("# everything in this folder travels\n")
    (target / TRAIN_FILE).write_text(shipment.train_json)
    config = relay_config(job, train, secret_names, submission)
    for key, name, nothing in (("offers", PRICES_FILE, []), ("terms", TERMS_FILE, None)):
        config[key] = json.loads((folder / name).read_bytes()) if (folder / name).exists() else nothing
    (target / "relay.json").write_text(json.dumps(config, indent=2))
    (target / "requirements.txt").write_text(requirements(job))
    (target / "constraints.txt").write_text(constraints())
    for path in SHIPPED:
        shutil.copy2(path, target / path.name)
    shutil.copytree(
        Path(trainer.__file__).parent, target / "source" / "trainer", ignore=shutil.ignore_patterns("__pycache__")
    )
    _stage(shipment, folder / STAGED)
    return target


def unstage(folder: Path) -> None:
    """Remove the job's staged files once the run is over: where they are copies, they take room. Not before: a jobs controller
    that lives with the API server reads them from here again whenever it takes a new node."""
    shutil.rmtree(folder / STAGED, ignore_errors=True)


def _stage(shipment: Shipment, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for number, one in enumerate(shipment.inputs):
        top = target / str(number)
        top.mkdir(parents=True)
        (top / NOTHING_IGNORED).write_text("# everything in this folder travels\n")
        root = Path(one.root)
        for file in one.files:
            staged = top / root.name / Path(file.path).relative_to(root)
            staged.parent.mkdir(parents=True, exist_ok=True)
            try:
                _link_or_copy(file.source, staged)
            except OSError as error:
                shutil.rmtree(target, ignore_errors=True)
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                advice = "set DOLPHIN_HOME to a larger disk" if full else "correct it and launch again"
                raise BackendError(
                    f"{one.key}: {file.path} cannot be staged in {target} ({error.strerror}); {advice}"
                ) from None


def _link_or_copy(source: str, target: Path) -> None:
    """A hard link where both are on one disk and this user may make one; else a copy."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
