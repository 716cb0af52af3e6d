"""Tries every command of an installed dolphin, as `make wheel` does in a virtual environment that has nothing but the wheel.

    PYTHON tests/support/try_installed.py      with the Python of that environment; standard library alone

Ends with the first command that does not do what it should.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

DOLPHIN = [str(Path(sys.executable).with_name("dolphin"))]
COMMANDS = (
    "init", "validate", "schema", "data", "plan", "launch", "logs", "status", "down", "resume", "fetch", "forget", "doctor",
    "spectrum scan", "spectrum select", "spectrum names",
)  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DOLPHIN_HOME"] = f"{folder}/home"
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.chdir(folder)
        listed = run("--help")
        for command in COMMANDS:
            assert f"\n  {command.split()[0]} " in listed, f"{command} is not listed"
            assert "Usage: dolphin" in run(*command.split(), "--help")
        assert "wrote job.yaml" in run("init")
        assert "valid" in run("validate", "job.yaml")
        assert '"$schema"' in run("schema")
        assert "job.yaml, key by key" in run("schema", "--keys")
        assert "sharegpt" in run("data", "--formats")
        assert "no run" in run("status")
        assert "local" in run("doctor", expect=None)
        version = run("--version")
        assert run("--version", command=[sys.executable, "-m", "launcher"]) == version
        shown = run("-c", "dolphin --show-completion", command=["bash"])
        assert "complete -o default" in shown
        where = run("-c", "import launcher; print(launcher.__file__)", command=[sys.executable, "-P"])
        assert "site-packages" in where, f"this is a checkout's: {where}"
    print(f"dolphin {version.strip()}: every command answers")


def run(*arguments: str, command: list[str] = DOLPHIN, expect: int | None = 0) -> str:
    """What it printed; any exit code will do where `expect` is None."""
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert expect in (None, done.returncode), f"{arguments}: exit code {done.returncode}\n{printed}"
    assert "Traceback" not in printed, printed
    return printed


if __name__ == "__main__":
    main()
