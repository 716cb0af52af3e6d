"""`dolphin chat` on a terminal: a prompt, an answer, and Ctrl-C that ends the conversation without a trace."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

from tests.support.dolphin_cli import Dolphin, wait_until
from tests.support.tiny_job import write_model
from trainer.run.chat_templates.registry import TEMPLATES

ON_A_TERMINAL = "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


def test_a_person_speaks_and_leaves_with_ctrl_c(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(TEMPLATES["chatml"].text)
    dolphin = Path(sys.executable).with_name("dolphin")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, dolphin, "chat", model, "--greedy", "--max-new-tokens", "3"],
        env=Dolphin(tmp_path / "home", fake=None).environment, stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    shown = b""

    def read() -> bytes:
        nonlocal shown
        if select.select([master], [], [], 0.1)[0]:
            try:
                shown += os.read(master, 4096)
            except OSError:  # nobody holds the other side any more
                pass
        return shown

    def ended() -> bool:
        read()
        return process.poll() is not None

    try:
        wait_until(lambda: b"> " in read())
        os.write(master, b"the sea\n")
        wait_until(lambda: read().count(b"> ") == 2)
        os.write(master, b"\x03")
        os.write(master, b"\n")  # an interrupt between the prompt and the read behind it waits for the read's end
        wait_until(ended)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert process.returncode == 0, shown
    assert b"Traceback" not in shown
