"""The text of a job file, or why it cannot be had."""

from __future__ import annotations

import stat
from pathlib import Path

from launcher.config.problems import LocatedProblem, SpecErrors

MAX_BYTES = 8_000_000


def read_text(path: Path) -> str:
    """The file's text. Raises SpecErrors where there is none to read."""
    try:
        if stat.S_ISFIFO(path.stat().st_mode) and not str(path).startswith(("/dev/", "/proc/")):
            raise SpecErrors([LocatedProblem(str(path), 1, "", "is a pipe, which may never end; name a file")])
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise SpecErrors(
                [LocatedProblem(str(path), 1, "", f"has {path.stat().st_size:,} bytes; no job is so long")]
            )
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        reason = "no such file; `dolphin init` writes one to start from"
    except IsADirectoryError:
        reason = "is a folder; name the file in it"
    except PermissionError:
        reason = "may not be read; check its permissions"
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise SpecErrors([LocatedProblem(str(path), 1, "", reason)])
