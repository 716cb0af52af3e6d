"""The entry point: what an error, Ctrl-C and a reader that left come to. Nothing is decided of any command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.cli.app import app


def main() -> None:
    """Entry point. Every error that is not a defect of dolphin is one or two lines, without a traceback."""
    _take_no_strangers_modules()
    from launcher import streams

    streams.mend()
    _obey_no_strangers_escapes()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # Looking for pydantic plugins reads the metadata of every installed package: a tenth of `dolphin validate`.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(args=arguments, prog_name="dolphin", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = _interrupted()
    except BrokenPipeError:  # `dolphin logs | head`: the reader has enough
        streams.discard_output()
        code = _interrupted()
    except Exception as error:
        from launcher.commands.explain import explain

        code = explain(error, debug)
    try:
        sys.stdout.flush()
    except OSError:  # else the end of the process tries again, and has a code of its own for it
        streams.discard_output()
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted() -> int:
    from launcher.runs.states import EXIT_CODES, EndReason

    return EXIT_CODES[EndReason.DETACHED]


def _take_no_strangers_modules() -> None:
    """A `trainer.py` on PYTHONPATH or in the working folder is not dolphin's."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from trainer.run import python

    del sys.path[0]
    python.protect()


def _obey_no_strangers_escapes() -> None:
    """What commands print goes through one filter: names, data, logs and servers' answers are strangers' words."""
    from launcher.config.untrusted import Shown

    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, Shown(stream))
