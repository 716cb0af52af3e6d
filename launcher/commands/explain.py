"""What an error means for the person at the terminal: a line or two, and the exit code of the command.

Loaded only once there is an error. Owns the order in which an error is recognised; the words are its raiser's.
"""

from __future__ import annotations

import os
import sys
import traceback

from launcher.runs import ledger
from launcher.runs.errors import LauncherError, full_disk
from launcher.runs.states import EXIT_CODES, EndReason


def explain(error: Exception, debug: bool) -> int:
    """Print an error for a person; the exit code it asks for."""
    if debug:
        traceback.print_exc()
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own: a wrong option or argument
        show = getattr(error, "show", None)
        if show is not None:
            show()
        return int(error.exit_code)
    if isinstance(error, LauncherError):
        if str(error):
            print(f"dolphin: {error}", file=sys.stderr)
        return EXIT_CODES[error.reason]
    if type(error).__name__ == "SpecErrors":
        print(error, file=sys.stderr)
        return EXIT_CODES[EndReason.BAD_SPECIFICATION]
    if type(error).__name__ == "BadInput":  # what model, data or file are, as the trainer would refuse them
        print(f"dolphin: {error}", file=sys.stderr)
        return EXIT_CODES[EndReason.BAD_SPECIFICATION]
    if isinstance(error, OSError):
        if type(error).__name__ == "OutputBroken":
            print(f"dolphin: standard output cannot be written ({error.strerror})", file=sys.stderr)
            return EXIT_CODES[EndReason.FAILED]
        if not _has_working_folder():
            print("dolphin: the folder that you are in was removed; `cd` to one that is there", file=sys.stderr)
            return EXIT_CODES[EndReason.BAD_SPECIFICATION]
        if full := full_disk(error, f"DOLPHIN_HOME ({ledger.home()})"):
            print(f"dolphin: {full}", file=sys.stderr)
            return EXIT_CODES[EndReason.FAILED]
        if error.filename is not None and error.strerror:
            print(f"dolphin: {error.filename}: {error.strerror}; correct it and try again", file=sys.stderr)
            return EXIT_CODES[EndReason.FAILED]
    if not debug:
        print(f"dolphin: unexpected {type(error).__name__}: {error}; run it again with --debug", file=sys.stderr)
    return EXIT_CODES[EndReason.FAILED]


def _has_working_folder() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False
