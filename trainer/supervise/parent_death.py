"""Children that die with their parent, on Linux, also when the parent is killed with SIGKILL.

Runs as a small program in front of another one: `python -I -S lifeline.py PARENT COMMAND...` asks the kernel to kill
this process when its parent ends, checks that the parent is still there, and becomes COMMAND; the wish survives the
exec. PARENT is a process id, or the name of an environment variable that holds one. `python -I -S` keeps this under
20 ms. Imports the standard library only, and nothing of dolphin.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TORCHRUN_PID = "DOLPHIN_TORCHRUN_PID"
"""Environment variable in which torchrun tells the ranks its process id."""


def command(parent: int | str, *argv: str) -> list[str]:
    """`argv` behind a lifeline to `parent`. Start it from a thread that lives on: the kernel watches the thread."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(parent), *argv]


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends; at once where it has ended already."""
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(128 + int(signal.SIGKILL))


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own, so that it can end and reap them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def main(argv: list[str]) -> None:
    parent = argv[0] if argv[0].isdecimal() else os.environ[argv[0]]
    die_with_parent(int(parent))
    os.execvp(argv[1], argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
