"""Starts Python so that dolphin's own files are what runs: no file of a working folder, none that PYTHONPATH puts before them.

People work in folders that hold a downloaded data set, and a `numpy.py` or `trainer.py` in one would be imported by a plain
`python -m`. Owns the only command line with which dolphin starts a module of its own, and the order of sys.path there:
dolphin's folder, the standard library, what is installed, and only then PYTHONPATH. Refuses to know which module it starts.

Is a program too: `python -P python.py MODULE ARGUMENTS...` runs MODULE as `python -m` would. Before it has put sys.path in
order it may import only what every Python has loaded by then.
"""

from __future__ import annotations

import os
import signal
import sys

SOURCE = "DOLPHIN_SOURCE"
"""Environment variable: another folder whose `trainer` is started, for one under development; tests put a faked one there."""
OWN_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The folder that holds `trainer` (and on a laptop `launcher`): a checkout, or site-packages."""


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` in a process of its own. Give it `environment(...)`."""
    return [os.path.abspath(sys.executable), "-P", os.path.abspath(__file__), module, *arguments]


def environment(given: dict[str, str]) -> dict[str, str]:
    """`given` for a Python that is started, and for those that it starts: no working folder on any path."""
    kept = [entry for entry in given.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]
    found = {name: value for name, value in given.items() if name != "PYTHONPATH"}
    return found | {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": os.pathsep.join(kept)} if kept else {})


def put_own_folder_first() -> None:
    """Put this process's sys.path in order. The working folder leaves it, unless it is dolphin's own."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        here = ""
    given = os.environ.get("PYTHONPATH", "")
    said = given.split(os.pathsep) if given else []
    outside = {os.path.normpath(os.path.join(here, entry)) for entry in said}
    if not sys.flags.safe_path and sys.path[:1] in (
        [""],
        [here],
    ):  # as `python -m` has it; of a script it is the script's
        outside |= {"", here}
    own = [entry for entry in sys.path if entry not in outside]
    source = os.environ.get(SOURCE)
    first = ([source] if source else []) + ([OWN_FOLDER] if OWN_FOLDER not in own else [])
    last = [os.path.normpath(entry) for entry in said if os.path.isabs(entry)]
    sys.path[:] = list(dict.fromkeys([*first, *own, *last]))


def protect() -> None:
    """The same for this process and everything that it starts; called first by a command."""
    put_own_folder_first()
    wanted = environment(dict(os.environ))
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(wanted)


def _run_module() -> None:
    put_own_folder_first()
    import runpy

    module, sys.argv = sys.argv[1], sys.argv[1:]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # what had to be put in order is; it ends as the signal would end it, without a traceback
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    _run_module()
