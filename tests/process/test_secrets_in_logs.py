"""A library that prints its headers when it fails must not put a token into a log that is sent on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import tiny_job
from tests.support.hook_server import HookServer
from trainer.run import redaction, secret_file

ROOT = Path(__file__).parents[2]
HOOK = "/services/T00/B00/not-for-others"
TOKEN, WORD = "hf_abcdefghijklmnop", 'two"words\\and more'
RANK = """
import os, sys
from trainer.run.run_folder import RunDir, EventKind
from trainer.run.spec import NodeJob
from trainer.supervise.rank_guard import rank_guard
job = NodeJob.read(sys.argv[1])
with rank_guard(job.run_dir, 1, 0):
    print("header: Bearer", os.environ["MY_THING"], flush=True)
    print("hook: " + os.environ["MY_HOOK"], flush=True)
    os.write(2, ("from C: " + os.environ["HF_TOKEN"] + "\\n").encode())
    RunDir(job.run_dir).emit(EventKind.PLAN, attempt=1, total_steps=os.environ["HF_TOKEN"])
    raise RuntimeError("401 for https://x/?token=" + os.environ["HF_TOKEN"])
"""


def test_no_file_of_a_run_holds_a_secrets_value(tmp_path: Path) -> None:
    run = tiny_job.write_job(tmp_path, "leaky", checkpoint={"max_restarts": 0})
    job = json.loads(run.train_json.read_text())
    run.train_json.write_text(json.dumps(job | {"limits": {"notify": ["${MY_HOOK}"]}}))
    (tmp_path / "leaky_rank.py").write_text(RANK)
    arguments: list[str] = []

    def look_at_arguments(_: str) -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                arguments.append(path.read_text(errors="replace"))

    server = HookServer(look_at_arguments)
    secret_file.write(tmp_path / "secrets", {"MY_THING": WORD, "HF_TOKEN": TOKEN, "MY_HOOK": server.url + HOOK})
    environment = tiny_job.environment(
        PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}", DOLPHIN_SECRETS_FILE=str(tmp_path / "secrets")
    )
    command = [
        sys.executable,
        "-m",
        "trainer.supervise",
        str(run.train_json),
        "--prepare",
        "none",
        "--main",
        "leaky_rank",
    ]
    with open(run.log, "wb") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, timeout=tiny_job.TIMEOUT_S)
    server.close()
    assert done.returncode == 1
    assert [body["event"] for body in server.of(HOOK)] == ["started", "failed"]
    assert "token=<HF_TOKEN>" in server.of(HOOK)[1]["text"]
    assert any("trainer.supervise" in line for line in arguments)
    assert not any(HOOK in line for line in arguments)
    said = run.log.read_text()
    assert "header: Bearer <MY_THING>" in said
    assert "from C: <HF_TOKEN>" in said
    assert "hook: <MY_HOOK>" in said
    assert "token=<HF_TOKEN>" in json.loads(run.outcome.read_text())["reason"]
    assert [event["total_steps"] for event in run.read_events() if event["event"] == "plan"] == ["<HF_TOKEN>"]
    for path in run.path.rglob("*"):
        if path.is_file():
            assert HOOK not in path.read_text(errors="replace"), path
            assert TOKEN not in path.read_text(errors="replace"), path
            assert WORD not in path.read_text(errors="replace"), path


def test_what_is_no_secret_stays_readable() -> None:
    environment = {
        "HF_TOKEN": TOKEN, "SHORT_TOKEN": "true", "GOOGLE_PRIVATE_KEY": "/home/me/key", "NAMED": "abcd", "LINES": "first line\nsecond",
        redaction.NAMES: "NAMED,LINES,ABSENT",
    }  # fmt: skip
    found = redaction.values_of(environment)
    assert found == {
        TOKEN: "HF_TOKEN",
        "abcd": "NAMED",
        "first line\nsecond": "LINES",
        "first line": "LINES",
        "second": "LINES",
    }
