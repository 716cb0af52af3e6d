"""A command line that starts slowly, shows a traceback for a typing error, or exits 0 where nothing was done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dolphin_cli import Dolphin, write_job

ALLOWED = {"launcher", "trainer", "typer", "annotated_doc", "shellingham"}
"""What `dolphin --help` may load beside the standard library: the command line, the order of the path, typer and what typer loads."""

_REPORT = """
import os, resource, sys
sys.argv = ["dolphin", *sys.argv[1:]]
from launcher.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
loaded = {m.partition(".")[0] for m in sys.modules if not m.startswith(("__editable__", "_distutils_hack", "__main__"))}
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, *sorted(loaded - set(sys.stdlib_module_names)), file=sys.stderr)
"""


@pytest.fixture
def dolphin(tmp_path):
    return Dolphin(tmp_path / "home")


def report(*arguments: str) -> tuple[int, int, set[str]]:
    """Exit code, peak memory in KiB, and the packages that are not Python's own."""
    done = subprocess.run([sys.executable, "-c", _REPORT, *arguments], capture_output=True, text=True, check=True)
    code, peak_kib, *names = done.stderr.splitlines()[-1].split()
    return int(code), int(peak_kib), set(names)


def test_help_loads_next_to_nothing():
    bare = subprocess.run([sys.executable, "-c", "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    code, peak_kib, names = report("--help")
    assert code == 0
    assert names <= ALLOWED
    assert peak_kib - int(bare.stdout) < 30 * 1024


def test_bash_completes_commands_and_options_without_loading_more(tmp_path):
    """Typed letters are answered by the command itself, at every Tab."""
    dolphin = Path(sys.executable).with_name("dolphin")
    shown = subprocess.run(
        ["bash", "-c", f"{dolphin} --show-completion"], capture_output=True, text=True, check=True
    ).stdout
    script = tmp_path / "completion.bash"
    script.write_text(
        f"PATH={dolphin.parent}:$PATH\n{shown}\n"
        'answer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dolphin_completion dolphin; echo "${COMPREPLY[@]}"; }\n'
        "answer dolphin la\nanswer dolphin spectrum s\nanswer dolphin launch --np\n"
    )
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["launch", "scan select", "--nproc"]
    assert done.stderr == ""


def test_python_finds_the_command_where_the_path_does_not(dolphin):
    done = subprocess.run([sys.executable, "-m", "launcher", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == dolphin.run("--help").stdout


@pytest.mark.parametrize("command", ["status", "logs", "down", "doctor"])
def test_no_command_loads_a_training_or_cloud_stack(command, tmp_path, monkeypatch):
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    _, _, names = report(command)
    assert not names & {"torch", "transformers", "datasets", "deepspeed", "numpy", "sky", "docker", "rich"}


def test_every_command_is_listed_and_explained(dolphin):
    text = dolphin.run("--help").stdout
    for command in (
        "init",
        "validate",
        "schema",
        "data",
        "plan",
        "offers",
        "launch",
        "logs",
        "status",
        "down",
        "resume",
        "fetch",
        "doctor",
        "spectrum",
    ):
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [command]]
        assert not line.endswith("..."), f"cut: {line}"
        assert "Usage" in dolphin.run(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lunch"], "No such command 'lunch'"),
        (["launch"], "Missing argument"),
        (["launch", "job.yaml", "--fast"], "No such option"),
        (["launch", "job.yaml", "--nproc", "0"], "nproc"),
        (["launch", "no-such.yaml", "-y"], "no-such.yaml"),
        (["launch", "job.yaml", "-y", "--on", "cloud9"], "choose one of local"),
        (["launch", "job.yaml", "-y", "--cluster", "c"], "means nothing --on local"),
        (["launch", "job.yaml", "-y", "--set", "train.lerning_rate=1"], "learning_rate"),
        (["launch", "job.yaml", "-y", "--nproc", "3"], "divide"),
        (["launch", "broken.yaml", "-y"], "broken.yaml"),
        (["offers"], "--accelerators L40S:8"),
        (["offers", "--accelerators", "8"], "write NAME:COUNT"),
        (["logs", "x"], "there is no run"),
        (["down"], "there is no run"),
        (["resume", "x"], "there is no run"),
        (["fetch", "x", "y"], "there is no run"),
        (["fetch", "x", "y", "--what", "all"], "not one of"),
        (["logs", "--since", "soon"], "is no age"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_line_or_two_with_exit_code_2(dolphin, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    write_job(tmp_path)
    Path("broken.yaml").write_text("name: [\n")
    done = dolphin.run(*arguments, expect=2)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4
    assert done.stdout == ""
    assert dolphin.run_ids() == []


def test_debug_shows_where_an_error_came_from(dolphin):
    process = dolphin.start("logs", "--debug")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "Traceback" in err
    assert "BadUsage" in err


def test_a_reader_that_has_enough_is_no_error(dolphin, tmp_path):
    """`dolphin logs | head -1`, on a run that goes on writing."""
    dolphin.fake = {"steps": 3000, "pause_s": 0.02}
    dolphin.run("launch", write_job(tmp_path), "-y", "-d")
    process = dolphin.start("logs")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "step 1 of 3000\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 130
    assert "the run goes on" in process.stderr.read()
    assert dolphin.status()["state"] == "running"
    dolphin.run("down", "--now")


def test_doctor_says_what_to_do_and_which_backends_work(dolphin, tmp_path):
    value = json.loads(dolphin.run("doctor", "--json").stdout)
    assert "local" in value["backends"]
    dolphin.extra_environment = {"PATH": "/nonexistent", "CXX": "", "DOCKER_HOST": f"unix://{tmp_path}/none"}
    done = dolphin.run("doctor", expect=None)
    assert "apt-get install g++" in done.stdout
    assert "install Docker Engine" in done.stdout
    home = tmp_path / "file"
    home.write_text("")
    dolphin.home = home / "home"
    assert "set DOLPHIN_HOME" in dolphin.run("doctor", expect=4).stdout
