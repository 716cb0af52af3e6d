"""A lab of SkyPilot's for tests, and `dolphin` in it. Needs root, Debian and network: each lab's script says for what."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.require import is_asked_for

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "lab" / "lab"
STEP_S = int(os.environ.get("DOLPHIN_LAB_STEP_S", "420"))
"""For each launch or recovery: minutes, more on a busy machine."""


@dataclass
class SkyLab:
    """What the labs have in common: a `sky` and a `dolphin` with the lab's variables."""

    folder: Path
    environment: dict[str, str]
    quickstart: Path
    """The quickstart's job.yaml, beside its data and its model."""

    @property
    def runs(self) -> Path:
        return Path(self.environment["DOLPHIN_HOME"]) / "runs"

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(self.environment["PATH"].partition(":")[0]) / arguments[0]), *arguments[1:]]

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """`dolphin ...`, its output in pipes."""
        return subprocess.Popen(
            self.command("dolphin", *arguments), env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip

    def run(self, *arguments: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=2 * STEP_S)
        assert expect is None or process.returncode == expect, f"{arguments}: {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def status(self, run: str) -> dict[str, Any]:
        return json.loads(self.run("status", run, "--json").stdout)

    def sky(self, *arguments: str) -> str:
        done = subprocess.run(
            self.command("sky", *arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)

    def launch_with(self, settings: dict[str, str], nproc: int) -> list[str]:
        """The command line of `launch` for the quickstart on SkyPilot."""
        changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return ["launch", str(self.quickstart), "--on", "sky", "--nproc", str(nproc), "-y", *changes]

    def local_digest(self, settings: dict[str, str], scratch: Path) -> dict[str, str]:
        """Hashes of the model that the quickstart with these settings leaves on this machine, without SkyPilot."""
        home = {**self.environment, "DOLPHIN_HOME": str(scratch / "home"), "CUDA_VISIBLE_DEVICES": ""}
        changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [
            str(Path(sys.executable).with_name("dolphin")),
            "launch",
            str(self.quickstart),
            "--on",
            "local",
            "-y",
            *changes,
        ]
        subprocess.run(command, env=home, check=True, timeout=2 * STEP_S, capture_output=True)
        found = digest(next((scratch / "home/runs").glob("*/model")))
        assert found
        return found

    def run_of(self, name: str) -> str:
        """The id of the one run of this name."""
        found = [path.name for path in self.runs.glob(f"{name}-[0-9]*")]
        assert len(found) == 1, found
        return found[0]


class Lab(SkyLab):
    """The Slurm of one node: tests/lab/lab."""

    @property
    def store(self) -> Path:
        return self.folder / "jobhome" / "store"

    def slurm_jobs(self) -> list[str]:
        done = subprocess.run(
            ["squeue", "-h", "-o", "%i %T"], env=self.environment, capture_output=True, text=True, check=True
        )
        return [line for line in done.stdout.splitlines() if "COMPLETING" not in line]

    def lab(self, command: str, **environment: str) -> None:
        subprocess.run([str(SCRIPT), command], env=settings(self.folder) | environment, check=True, timeout=1200)

    def job(self, name: str, python: str | None = "trainer/bin/python", **changes: str) -> list[str]:
        """The command line of `launch` for the quickstart, on two CPU ranks of a node with eight pretend L40S.

        `python` in the lab's folder is the trainer's; None leaves that to the node.
        """
        settings = {
            "name": name, "resources.infra": "slurm/dolphin", "resources.accelerators": "L40S:8",
            "checkpoint.store": str(self.store), "env.DOLPHIN_DEVICE": "cpu",
            **({"env.DOLPHIN_PYTHON": str(self.folder / python)} if python else {}), **changes,
        }  # fmt: skip
        return self.launch_with(settings, 2)


class Followed:
    """A `dolphin launch` that goes on beside the test, with the lines that it wrote so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.out, self.err = process, list[str](), list[str]()
        pipes = ((process.stdout, self.out), (process.stderr, self.err))
        self._readers = [threading.Thread(target=lines.extend, args=(pipe,), daemon=True) for pipe, lines in pipes]
        for reader in self._readers:
            reader.start()

    def last_step(self) -> int:
        """The last that the log told of; 0 before the first."""
        return max((int(match[1]) for line in self.out if (match := re.match(r"step (\d+)/", line))), default=0)

    def has_reached(self, step: int) -> bool:
        """AssertionError where the command has ended before."""
        assert self.process.poll() is None, "".join(self.err)
        return self.last_step() >= step

    def wait(self, timeout_s: float) -> int:
        code = self.process.wait(timeout=timeout_s)
        for reader in self._readers:
            reader.join(timeout=10)
        return code


def settings(folder: Path, variable: str = "DOLPHIN_LAB") -> dict[str, str]:
    """The environment of the lab's own commands: its folder, and this Python's packages as the trainer's."""
    return {**os.environ, variable: str(folder), "LAB_TRAINER_SITE": sysconfig.get_path("purelib")}


def exported(script: Sequence[str], with_lab: dict[str, str]) -> dict[str, str]:
    """What the lab's `env` command prints."""
    lines = subprocess.run([*script, "env"], env=with_lab, capture_output=True, text=True, check=True).stdout
    return dict(word.split("=", 1) for line in lines.splitlines() for word in shlex.split(line)[1:])


def built_quickstart(folder: Path) -> Path:
    """The quickstart's job.yaml in this folder, beside its data and its model."""
    example = ROOT / "examples" / "quickstart"
    subprocess.run([sys.executable, str(example / "build.py"), "--out", str(folder)], check=True, capture_output=True)
    return Path(shutil.copy(example / "job.yaml", folder))


def until(condition: Callable[[], Any], timeout_s: float = STEP_S) -> Any:
    """The first true value of the condition."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain"
        time.sleep(2)
    return value


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def require(what: str) -> None:
    """Skip where the lab cannot be had; fail where DOLPHIN_REQUIRE says that it must."""
    if is_asked_for(what):
        return
    if os.geteuid() != 0 or "lab" not in os.environ.get("DOLPHIN_LAB_TESTS", ""):
        pytest.skip(
            "the SkyPilot lab takes root, Slurm's packages and half an hour: set DOLPHIN_LAB_TESTS=lab to run it"
        )
