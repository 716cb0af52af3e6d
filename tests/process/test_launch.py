"""The real `dolphin`, as a person meets it: the terminal closes, Ctrl-C, two launches at once, a killed supervisor."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import tiny_job
from tests.support.dolphin_cli import TIMEOUT_S, Dolphin, wait_until, write_job

LONG = {"steps": 100_000, "pause_s": 0.02}


@pytest.fixture
def dolphin(tmp_path):
    dolphin = Dolphin(tmp_path / "home")
    yield dolphin
    for run in dolphin.run_ids():
        dolphin.run("down", run, "--now")


@pytest.fixture
def job(tmp_path):
    return write_job(tmp_path / "job")


def test_launch_follows_to_the_model_and_fetch_brings_it_home(dolphin, job, tmp_path):
    done = dolphin.run("launch", job, "-y", "--set", "train.max_steps=7", "--nproc", "1")
    assert done.stdout == "".join(f"step {n} of 5\n" for n in range(1, 6))
    assert "validation loss" in done.stderr
    assert "answer    It is a fake." in done.stderr
    (run,) = dolphin.run_ids()
    folder = dolphin.home / "runs" / run
    assert f"model: {folder / 'model'}" in done.stderr
    train = json.loads((folder / "train.json").read_text())
    assert (train["run_id"], train["nproc"], train["spec"]["train"]["max_steps"]) == (run, 1, 7)
    assert train["spec"]["train"]["global_batch"] == 4
    assert json.loads((folder / "plan.json").read_text())["steps"]["total"] == 7
    present = {path.name for path in folder.iterdir()}
    assert present >= {
        "job.yaml",
        "train.json",
        "record.json",
        "log.txt",
        "metrics.jsonl",
        "events.jsonl",
        "outcome.json",
    }
    assert dolphin.run("fetch", run[:-2], tmp_path / "mine").stdout.strip() == str(tmp_path / "mine")
    assert (tmp_path / "mine" / "config.json").exists()
    finished = dolphin.run("resume", run).stderr
    assert "nothing to resume" in finished
    assert "--set train.epochs=" in finished
    for setting, says in {
        "train.max_steps=6": "6 is less than the 7",
        "train.log_every=5": "it goes on with more train.epochs or train.max_steps alone",
        "train.learning_rate=0.5": "it goes on with more",
    }.items():
        assert says in dolphin.run("resume", run, "--set", setting, expect=2).stderr
    longer = dolphin.run("resume", run, "--set", "train.max_steps=8")
    assert "was succeeded; starting it again" in longer.stderr
    assert "the schedule drawn anew" in longer.stderr
    train = json.loads((folder / "train.json").read_text())
    assert train["spec"]["train"]["max_steps"] == 8
    # The job as resolved says the same again, from anywhere.
    assert dolphin.run("validate", folder / "job.yaml").returncode == 0


def test_layers_are_chosen_by_a_scan_of_the_model_that_is_made_once(dolphin, tmp_path):
    model = tiny_job.write_model(tmp_path / "model")
    choice = {"spectrum": {"snr": str(model), "top": "50%"}, "patterns": ["norm"]}
    train = {"max_steps": 5, "global_batch": 4, "unfrozen": choice}
    job = write_job(tmp_path / "job", model={"base": str(model)}, train=train)
    first, second = dolphin.run("launch", job, "-y"), dolphin.run("launch", job, "-y")
    assert "measuring the signal-to-noise ratios" in first.stderr
    assert "measuring" not in second.stderr
    chosen = [json.loads((dolphin.home / "runs" / run / "train.json").read_text()) for run in dolphin.run_ids()]
    patterns = [one["spec"]["train"]["unfrozen"] for one in chosen]
    assert patterns[0] == patterns[1]
    assert patterns[0][0] == "norm"
    # one of the two layers for each of the seven module types of a Llama
    assert len({pattern.rpartition(".")[2] for pattern in patterns[0][1:]}) == len(patterns[0][1:]) == 7


def test_json_of_launch_is_one_value_with_the_exit_code(dolphin, job):
    done = dolphin.run("launch", job, "-y", "--json")
    value = json.loads(done.stdout)
    assert (value["state"], value["exit_code"], value["step"]) == ("succeeded", 0, 5)
    assert Path(value["model"]).is_dir()
    assert "step 1 of 5" in done.stderr
    dolphin.fake = {"exit": 64, "reason": "data.jsonl: row 3 has no turns"}
    done = dolphin.run("launch", job, "-y", "--json", expect=1)
    value = json.loads(done.stdout)
    assert (value["state"], value["exit_code"], value["trainer_exit_code"]) == ("bad input", 1, 64)
    assert value["detail"] == "data.jsonl: row 3 has no turns"
    assert "row 3 has no turns" in done.stderr
    assert "It is a fake" not in done.stderr
    assert len(dolphin.run("status", "--all").stdout.splitlines()) == 3


def test_nothing_starts_that_was_not_confirmed(dolphin, job):
    done = dolphin.run("launch", job, expect=2)
    assert "pass -y" in done.stderr
    assert dolphin.run_ids() == []


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 5), ("\n", 5)])
def test_a_person_is_asked(dolphin, job, answer, code):
    master, slave = pty.openpty()
    process = dolphin.start("launch", job, stdin=slave)
    os.write(master, answer.encode())
    _, err = process.communicate(timeout=TIMEOUT_S)
    os.close(master)
    os.close(slave)
    assert process.returncode == code, err
    assert len(dolphin.run_ids()) == (1 if code == 0 else 0)


def test_ctrl_c_detaches_and_the_run_goes_on(dolphin, job):
    dolphin.fake = LONG
    process = dolphin.start("launch", job, "-y", start_new_session=True)
    wait_until(dolphin.run_ids)
    dolphin.wait_for_step(3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to its whole foreground group
    _, err = process.communicate(timeout=TIMEOUT_S)
    (run,) = dolphin.run_ids()
    assert process.returncode == 130
    assert f"dolphin logs {run}" in err
    assert f"dolphin down {run}" in err
    assert "Traceback" not in err
    before = dolphin.status()["step"]
    assert dolphin.wait_for_step(before + 5)["state"] == "running"
    # Back again, from another terminal; then stopped from a third.
    follower = dolphin.start("logs", "--tail", "1")
    assert follower.stdout is not None
    assert follower.stdout.readline().startswith("step ")
    done = dolphin.run("down")
    assert "saved at step" in done.stderr
    _, err = follower.communicate(timeout=TIMEOUT_S)
    assert follower.returncode == 5
    assert f"dolphin resume {run}" in err
    # And on to its end: harmless settings may change, others may not.
    saved = dolphin.status()["saved_step"]
    refused = dolphin.run("resume", run, "--set", "train.learning_rate=0.5", expect=2)
    assert "train.learning_rate would change what the run computes" in refused.stderr
    dolphin.fake = {"steps": saved + 3}
    done = dolphin.run("resume", run, "--set", "train.log_every=5", "--nproc", "1")
    assert done.stdout == "".join(f"step {n} of {saved + 3}\n" for n in range(saved + 1, saved + 4))
    assert f"attempt 2: resumed at step {saved} of {saved + 3}" in done.stderr
    assert "stopped at step" not in done.stderr, "the past was told again"
    status = dolphin.status()
    assert (status["run"], status["state"], status["attempts"]) == (run, "succeeded", 2)


def test_a_run_goes_on_when_its_terminal_closes(dolphin, job):
    """A shell with a terminal of its own, closed under the launcher: the kernel sends SIGHUP to all of its group."""
    dolphin.fake = LONG
    master, slave = pty.openpty()
    code = "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", code, str(Path(sys.executable).with_name("dolphin")), "launch", str(job), "-y"]
    process = subprocess.Popen(command, env=dolphin.environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    wait_until(dolphin.run_ids)
    before = dolphin.wait_for_step(2)["step"]
    os.close(master)
    assert process.wait(timeout=TIMEOUT_S) != 0
    assert dolphin.wait_for_step(before + 10)["state"] == "running"


def test_the_screen_of_a_terminal_shows_bar_log_and_table(dolphin, job):
    dolphin.fake = {"steps": 40, "pause_s": 0.05}
    master, slave = pty.openpty()
    process = dolphin.start("launch", job, "-y", stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        shown += block
    os.close(master)
    assert process.wait(timeout=TIMEOUT_S) == 0
    text = shown.decode()
    assert "step 40 of 40" in text
    assert "/40 · loss" in text
    assert "validation loss" in text


def test_two_launches_at_once_are_two_runs(dolphin, job):
    processes = [dolphin.start("launch", job, "-y", "--json") for _ in range(2)]
    values = [json.loads(process.communicate(timeout=TIMEOUT_S)[0]) for process in processes]
    assert [value["state"] for value in values] == ["succeeded", "succeeded"]
    assert len({value["run"] for value in values}) == 2
    assert sorted(dolphin.run_ids()) == sorted(value["run"] for value in values)


def test_two_resumes_at_once_start_one_trainer(dolphin, job):
    dolphin.fake = {"exit": 1, "steps": 1}
    dolphin.run("launch", job, "-y", expect=1)
    (run,) = dolphin.run_ids()
    dolphin.fake = LONG
    processes = [dolphin.start("resume", run, "-d") for _ in range(2)]
    errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes.count(0) == 1, errors
    assert dolphin.status()["state"] == "running"


def test_a_killed_supervisor_is_lost_and_launch_says_so(dolphin, job):
    dolphin.fake = LONG | {"vanish_at": 5, "tear": True}
    done = dolphin.run("launch", job, "-y", expect=1)
    assert "gone without an outcome" in done.stderr
    (run,) = dolphin.run_ids()
    assert f"dolphin resume {run}" in done.stderr
    status = dolphin.status()
    assert (status["state"], status["step"]) == ("lost", 4)
    dolphin.fake = {"steps": 6}
    assert dolphin.run("resume", run).returncode == 0


def test_down_kills_a_stubborn_tree_and_says_that_nothing_was_saved(dolphin, job):
    dolphin.fake = LONG | {"stubborn": True, "workers": 1}
    dolphin.run("launch", job, "-y", "-d")
    dolphin.wait_for_step(2)
    (run,) = dolphin.run_ids()
    tree = [p.pid for p in psutil.process_iter() if _marker(p) == run]
    assert len(tree) == 2
    done = dolphin.run("down", "--grace", "0.5")
    assert "killed" in done.stderr
    assert "nothing was saved yet" in done.stderr
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in tree)
    assert dolphin.status()["state"] == "cancelled"
    assert dolphin.run("logs", "--no-follow").stdout.startswith("step 1")


def _marker(process):
    try:
        return process.environ().get("DOLPHIN_RUN_ID")
    except psutil.Error:
        return None


def test_a_launcher_killed_after_the_start_loses_nothing(dolphin, job):
    """SIGKILL at moments around the submit: afterwards there is no run, or one that the next command finds and stops."""
    dolphin.fake = LONG
    for delay_s in (0.3, 0.6, 0.9, 1.2):
        known = set(dolphin.run_ids())
        process = dolphin.start("launch", job, "-y")
        time.sleep(delay_s)  # any moment will do: what must hold holds at each
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
        for run in set(dolphin.run_ids()) - known:
            if not (dolphin.home / "runs" / run / "record.json").exists():
                continue
            state = dolphin.status(run)["state"]
            marked = [p for p in psutil.process_iter() if _marker(p) == run]
            assert (state == "running") == bool(marked), (delay_s, state, marked)
            dolphin.run("down", run, "--now")
            assert not [p for p in psutil.process_iter() if _marker(p) == run]


def test_a_secret_is_in_no_file_and_must_be_set(dolphin, tmp_path):
    job = write_job(tmp_path / "job", secrets=["FAKE_TOKEN"])
    done = dolphin.run("launch", job, "-y", expect=2)
    assert "export FAKE_TOKEN" in done.stderr
    assert dolphin.run_ids() == []
    dolphin.extra_environment = {"FAKE_TOKEN": "tell-nobody-0451"}
    dolphin.fake = {"show_secret_length": True}
    done = dolphin.run("launch", job, "-y")
    assert "secret of 16 letters" in done.stdout
    held = [path for path in tmp_path.rglob("*") if path.is_file() and b"tell-nobody-0451" in path.read_bytes()]
    assert held == []


def test_a_run_made_from_an_axolotl_file_keeps_its_text_and_so_does_a_resume(dolphin, job, tmp_path):
    text = (
        "base_model: ./base  # mine\ndatasets: [{path: ./data.jsonl, type: chat_template}]\nsequence_len: 64\n"
        "chat_template: chatml\nmicro_batch_size: 2\nmax_steps: 5\nlearning_rate: 1e-4\n"
    )
    (job.parent / "axolotl.yml").write_text(text)
    dolphin.run("launch", job.parent / "axolotl.yml", "-y", "--on", "local", "--nproc", "1")
    (run,) = dolphin.run_ids()
    folder = dolphin.home / "runs" / run
    assert (folder / "axolotl.yml").read_text() == text
    dolphin.run("resume", run, "--set", "train.max_steps=8")
    assert json.loads((folder / "train.json").read_text())["axolotl"] == text


def test_a_run_made_from_a_job_keeps_no_axolotl_file(dolphin, job):
    dolphin.run("launch", job, "-y")
    (run,) = dolphin.run_ids()
    assert not (dolphin.home / "runs" / run / "axolotl.yml").exists()
