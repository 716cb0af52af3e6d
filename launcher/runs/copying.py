"""Copying a run's folders home: whole or not at all. Refuses to know runs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from launcher.runs.errors import BackendError


@contextlib.contextmanager
def arriving(target: Path, what: str) -> Iterator[Path]:
    """A name beside `target` for the body to make a folder at, which becomes `target` once the body is done and is removed
    where it fails. BackendError where target holds something already, and for an OSError; `what` is being copied."""
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackendError(f"{target}: is not an empty folder; name another one")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, target)
    except (OSError, shutil.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BackendError(f"{target}: cannot copy {what} there: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> Path:
    """Copy a folder to `target`, or a file into it, and return where it is; as `arriving`."""
    with arriving(target, str(source)) as partial:
        if source.is_dir():
            shutil.copytree(source, partial)
            return target.absolute()
        partial.mkdir()
        shutil.copy2(source, partial / source.name)
        return target.absolute() / source.name
