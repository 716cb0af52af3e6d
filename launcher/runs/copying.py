"""Copying a run's folders home: whole or not at all. Refuses to know runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from launcher.runs.errors import BackendError


def copy_folder(source: Path, target: Path) -> Path:
    """Copy a folder to `target`, or a file into it, and return where it is. The copy appears under its name only when
    complete; a target that holds something already is refused."""
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackendError(f"{target}: is not an empty folder; name another one")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, partial)
        else:
            partial.mkdir()
            shutil.copy2(source, partial / source.name)
        os.replace(partial, target)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BackendError(f"{target}: cannot copy {source} there: {reason}") from None
    return target if source.is_dir() else target / source.name
