"""The words of a data set, a run and its files on a person's screen, through the real command, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from tests.support.dolphin_cli import TIMEOUT_S, Dolphin, write_job

CLIPBOARD, TITLE, LINK, TURN = "\x1b]52;c;ZXZpbA==\x07", "\x1b]0;bank\x07", "\x1b]8;;https://evil\x1b\\", "\u202e"
ATTACK = f"{CLIPBOARD}{TITLE}{LINK}\x1b[31mred\x1b[0m{TURN}"


def check(said: str) -> None:
    assert "]52;" not in said
    assert "]0;" not in said
    assert "]8;" not in said
    assert TURN not in said


def test_no_word_of_a_run_commands_the_terminal(tmp_path: Path) -> None:
    dolphin = Dolphin(tmp_path / "home", {"steps": 2, "exit": 1, "reason": f"it broke {ATTACK}"})
    job = write_job(tmp_path / "job")
    dolphin.run("launch", job, "-y", expect=1)
    (run_id,) = dolphin.run_ids()
    folder = dolphin.home / "runs" / run_id
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        log.write(f"a line {ATTACK}\n")
    with open(folder / "events.jsonl", "a", encoding="utf-8") as events:
        for event in ({"event": "restarting", "reason": ATTACK}, {"event": "phase", "phase": ATTACK}):
            events.write(json.dumps({"attempt": 1, "time": 0, **event}, ensure_ascii=False) + "\n")
    for command in (
        ["logs"],
        ["status"],
        ["status", "--all"],
        ["status", f"{run_id}{ATTACK}"],
        ["validate", f"/no/{ATTACK}.yaml"],
    ):
        done = dolphin.run(*command, expect=None)
        check(done.stdout + done.stderr)
    assert "\x1b[31mred\x1b[0m" in dolphin.run("logs", expect=None).stdout, "colours of a log stay"
    assert TURN in json.loads(dolphin.run("status", "--json").stdout)["detail"], "data for a program stays what it is"
    check(on_a_terminal(dolphin, "logs"))


def on_a_terminal(dolphin: Dolphin, *arguments: str) -> str:
    master, slave = pty.openpty()
    command = [str(Path(sys.executable).with_name("dolphin")), *arguments]
    process = subprocess.Popen(command, env=dolphin.environment | {"TERM": "xterm"}, stdout=slave, stderr=slave)
    os.close(slave)
    parts = []
    try:
        while part := os.read(master, 65536):
            parts.append(part)
    except OSError:  # the other end is closed
        pass
    process.wait(TIMEOUT_S)
    os.close(master)
    said = b"".join(parts).decode(errors="replace")
    assert "a line" in said
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
