"""The text of a job file, or why it cannot be had."""

from __future__ import annotations

from pathlib import Path

from launcher.config.problems import LocatedProblem, SpecErrors


def read_text(path: Path) -> str:
    """The file's text. Raises SpecErrors where there is none to read."""
    try:
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
