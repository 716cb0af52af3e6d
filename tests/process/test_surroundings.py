"""No home, no terminal, closed or full streams, a folder that is gone: a line or two, the right code, nothing half-written."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dolphin_cli import TIMEOUT_S, Dolphin, write_job

DOLPHIN = str(Path(sys.executable).with_name("dolphin"))


@pytest.fixture
def dolphin(tmp_path):
    return Dolphin(tmp_path / "home")


@pytest.fixture
def job(tmp_path):
    return write_job(tmp_path / "job")


def shell(dolphin: Dolphin, line: str, cwd: Path, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """A line of bash with `dolphin` in it; a change to None takes a variable away."""
    environment = {k: v for k, v in (dolphin.environment | changes).items() if v is not None}
    line = line.replace("dolphin ", f"{shlex.quote(DOLPHIN)} ", 1)
    done = subprocess.run(
        ["bash", "-c", line], env=environment, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("command", "code"),
    [("validate {job}", 0), ("status", 0), ("--version", 0), ("schema", 0), ("launch {job}", 2), ("logs", 2)],
)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_ends_as_its_work_did_with_any_stream_closed(dolphin, job, tmp_path, command, code, closed):
    assert shell(dolphin, f"dolphin {command.format(job=job)} {closed}", tmp_path).returncode == code


def test_a_question_with_no_input_is_no_terminal(dolphin, job, tmp_path):
    done = shell(dolphin, f"dolphin launch {job} <&-", tmp_path)
    assert "no terminal to ask on; pass -y" in done.stderr
    assert dolphin.run_ids() == []


@pytest.mark.parametrize("command", ["validate {job}", "--help", "--version", "schema", "init -o -", "doctor"])
def test_an_answer_that_a_full_disk_swallowed_is_no_success(dolphin, job, tmp_path, command):
    done = shell(dolphin, f"dolphin {command.format(job=job)} >/dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "dolphin: standard output cannot be written (No space left on device)\n"
    assert shell(dolphin, f"dolphin {command.format(job=job)} 2>/dev/full", tmp_path).returncode == 0


def test_a_run_whose_log_cannot_be_shown_is_followed_to_its_end(dolphin, job, tmp_path):
    done = shell(dolphin, f"dolphin launch {job} -y >/dev/full", tmp_path)
    assert done.returncode == 0
    assert "standard output cannot be written (No space left on device); the log is shown no further" in done.stderr
    assert dolphin.status()["state"] == "succeeded"


def test_a_folder_that_was_removed_under_a_command(dolphin, job, tmp_path):
    gone = f"mkdir -p {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && "
    assert shell(dolphin, f"{gone}dolphin validate {job}", tmp_path).returncode == 0
    assert shell(dolphin, f"{gone}dolphin status", tmp_path).returncode == 0
    for command in ("validate job.yaml", "init", "launch job.yaml -y"):
        done = shell(dolphin, f"{gone}dolphin {command}", tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) <= 2
    done = shell(dolphin, f"{gone}dolphin status", tmp_path, DOLPHIN_HOME="relative")
    assert done.returncode == 2
    assert "name an absolute one" in done.stderr


@pytest.mark.parametrize("stated", ["~nosuchuser/x", None])
def test_a_user_without_a_home_is_asked_for_a_folder(dolphin, job, tmp_path, stated):
    alone = "unshare --user --map-user=54321 env -u HOME "
    if subprocess.run(["bash", "-c", f"{alone}true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    done = shell(dolphin, f"{alone}dolphin status", tmp_path, DOLPHIN_HOME=stated)
    assert done.returncode == 2
    assert "set DOLPHIN_HOME to a folder of yours" in done.stderr
    assert shell(dolphin, f"{alone}dolphin validate {job}", tmp_path, DOLPHIN_HOME=stated).returncode == 0
    assert shell(dolphin, f"{alone}dolphin status", tmp_path).returncode == 0
    done = shell(dolphin, f"{alone}dolphin doctor --json", tmp_path, DOLPHIN_HOME=stated)
    (home,) = [finding for finding in json.loads(done.stdout)["findings"] if finding["subject"] == "DOLPHIN_HOME"]
    assert home["health"] == "missing"


@pytest.mark.parametrize("path", ["~nosuchuser/x.jsonl", "~nobody/x.jsonl", "~/x.jsonl"])
def test_a_home_that_there_is_not_is_a_file_that_there_is_not(dolphin, job, tmp_path, path):
    done = shell(dolphin, f"dolphin validate {job} --set data.sources.0.path={path}", tmp_path)
    assert done.returncode == 2
    assert "no such file or folder" in done.stderr


def test_a_job_that_did_not_fit_on_the_disk_does_not_stand_in_the_way_of_the_next(dolphin, tmp_path):
    limited = f"ulimit -f 1; trap '' XFSZ; cd {tmp_path}; "  # files of at most 1 KiB
    done = shell(dolphin, f"{limited}dolphin init", tmp_path)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert not (tmp_path / "job.yaml").exists()
    assert shell(dolphin, f"cd {tmp_path}; dolphin init", tmp_path).returncode == 0


@pytest.mark.parametrize("option", ["--since 99999999d", f"--since {'9' * 400}d", "--since -1d"])
def test_a_number_that_means_nothing_is_refused(dolphin, job, tmp_path, option):
    dolphin.run("launch", job, "-y")
    done = shell(dolphin, f"dolphin logs {option}", tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""


def test_a_log_of_odd_lines_is_shown_as_it_is(dolphin, job, tmp_path):
    """Bars with carriage returns, broken UTF-8, a line longer than any buffer, a time that no calendar has."""
    dolphin.run("launch", job, "-y")
    (run,) = dolphin.run_ids()
    log = dolphin.home / "runs" / run / "log.txt"
    odd = [
        b"first\n",
        b"\r".join(b"Downloading: %3d%%|####" % number for number in range(0, 101, 5)) + b"\n",
        b"bad \xff\xfe utf8\n",
        "漢".encode() * 300_001 + b"\n",
        b"[2026-13-45 10:00:00] a time\n",
        b"null\x00byte\n",
        "ls\u2028ps\n".encode(),
        b"last without newline",
    ]
    log.write_bytes(b"".join(odd))
    whole = b"".join(odd).decode(errors="replace")
    assert dolphin.start("logs", text=False).communicate(timeout=TIMEOUT_S)[0].decode() == whole  # type: ignore[attr-defined]
    tail = dolphin.start("logs", "--tail", "5", text=False).communicate(timeout=TIMEOUT_S)[0].decode()  # type: ignore[attr-defined]
    assert tail == b"".join(odd[-5:]).decode()
    assert len(dolphin.run("logs", "--tail", "9" * 30).stdout) > 300_000
    dolphin.run("logs", "--since", "10000d")


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_home_that_cannot_be_written_is_told_before_the_question_and_holds_no_half_of_a_run(tmp_path, job, kind):
    script = tmp_path / "script"
    mount = (
        f"mount -t tmpfs -o size=8k tmpfs {tmp_path}/home && head -c 100000 /dev/zero >{tmp_path}/home/fill 2>/dev/null"
    )
    if kind == "read-only":
        mount = f"mount -t tmpfs tmpfs {tmp_path}/home && mount -o remount,ro {tmp_path}/home && false"
    (tmp_path / "home").mkdir()
    commands = ("validate JOB", "status", "plan JOB", "launch JOB", "data JOB", "doctor --json")
    lines = [f"{DOLPHIN} {command.replace('JOB', str(job))} </dev/null >{tmp_path}/{number}.out 2>{tmp_path}/{number}.err; echo $?"
             for number, command in enumerate(commands)]  # fmt: skip
    script.write_text("\n".join([f"{mount} || true", *lines, f"ls -A {tmp_path}/home"]))
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", tmp_path / "home"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    environment = Dolphin(tmp_path / "home").environment
    done = subprocess.run([*alone, "bash", script], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    *codes, left = done.stdout.split("\n", len(commands))
    assert codes == ["0", "0", "0", "1", "1", "4"], done.stdout
    errors = [(tmp_path / f"{number}.err").read_text() for number in range(len(commands))]
    assert not any("unexpected" in error or "Traceback" in error for error in errors)
    assert ("is full" if kind == "full" else "cannot write the run's folder") in errors[3]
    assert "asks before it starts" not in errors[3]
    assert "runs" not in left.split()
    (home,) = [
        one for one in json.loads((tmp_path / "5.out").read_text())["findings"] if one["subject"] == "DOLPHIN_HOME"
    ]
    assert home["health"] == "missing"
