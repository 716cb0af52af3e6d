"""A program that a command started and a person interrupts ends by the signal, and shows nobody where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from trainer.run import python


def test_an_interrupted_program_ends_without_a_traceback() -> None:
    process = subprocess.Popen(
        python.command("json.tool"), env=python.environment(dict(os.environ)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for _ in range(100):  # where the kernel does not tell, two seconds are enough
        if "pipe_read" in waits_in(process.pid):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in said


def waits_in(pid: int) -> str:
    """The kernel's function that a process sleeps in: it reads its input once it is there."""
    return Path(f"/proc/{pid}/wchan").read_text()
