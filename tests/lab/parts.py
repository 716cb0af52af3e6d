"""What the labs of this folder share: packages of the system, SkyPilot's environment, and what a node needs without a network.

Each lab is a script that any Python runs, so this uses the standard library alone. Knows no lab by name, and keeps nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROBE = "DOLPHIN_LAB_PROBE"
"""The address that SkyPilot asks, in a lab, whether there is a network."""
ON_A_NODE = {
    "sshd": "openssh-server",
    "rsync": "rsync",
    "socat": "socat",
    "nc": "netcat-openbsd",
    "lsof": "lsof",
    "curl": "curl",
}
"""Programs that SkyPilot uses on every node, and Debian's package of each."""
GPUS = [["GPU", "MemoryGB", "Manufacturer"], ["L40S", 48, "NVIDIA"], ["H100", 80, "NVIDIA"]]
"""SkyPilot's common/metadata.csv."""


def install_packages(programs: Mapping[str, str]) -> None:
    places = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [package for program, package in programs.items() if not shutil.which(program, path=places)]
    if missing:
        settings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        subprocess.run(["apt-get", "update", "-qq"], env=settings, check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=settings, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip


def system_python() -> Path:
    """Debian's: it has the version of this project's virtual environment, and is there for every user."""
    return sorted(Path("/usr/bin").glob("python3.1[0-9]"))[-1]


def client_python(lab: Path, cloud: str, *more: str) -> Path:
    """The launcher's environment: what `pip install 'dolphin-launcher[sky]' 'skypilot[CLOUD]'` gives a person, apart from
    the trainer's; `more` are packages for tests. Also `LAB/python`, a link to it."""
    given = os.environ.get("LAB_PYTHON")
    python = Path(given).absolute() if given else lab / "client" / "bin" / "python"
    if not given and not python.with_name("dolphin").exists():
        subprocess.run([sys.executable, "-m", "venv", lab / "client"], check=True)
        wanted = [f"skypilot[{cloud}]", "-e", f"{ROOT}[sky]", *more]
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    elif not given and _installed_from(python) != ROOT.as_uri():  # the lab outlives a checkout
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-e", ROOT], check=True)
    (lab / "python").unlink(missing_ok=True)
    (lab / "python").symlink_to(python)
    _network_probe(python)
    return python


def _installed_from(python: Path) -> str:
    """Address of the checkout that the client's dolphin was installed from."""
    [record] = python.parents[1].glob("lib/python3*/site-packages/dolphin_launcher-*.dist-info/direct_url.json")
    return str(json.loads(record.read_text())["url"])


def _network_probe(python: Path) -> None:
    """SkyPilot asks two public addresses whether there is a network; with PROBE set, that one."""
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    site = Path(where.stdout.strip())
    (site / "dolphin_lab_probe.py").write_text(
        textwrap.dedent(f'''\
        """In a lab only ({PROBE}): the network is up when the lab's own server answers."""
        import os
        import sys
        from importlib.machinery import PathFinder

        TARGET = "sky.backends.backend_utils"


        class Probe:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name != TARGET:
                    return None
                spec = PathFinder.find_spec(name, path)
                execute = spec.loader.exec_module

                def exec_module(module):
                    execute(module)
                    module._TEST_IP_LIST = [os.environ["{PROBE}"]]

                spec.loader.exec_module = exec_module
                return spec


        if os.environ.get("{PROBE}"):
            sys.meta_path.insert(0, Probe)
        ''')
    )
    (site / "dolphin_lab_probe.pth").write_text("import dolphin_lab_probe\n")


def trainer_site() -> Path:
    """The site-packages that hold the trainer's stack: LAB_TRAINER_SITE, else this project's .venv."""
    default = ROOT / f".venv/lib/{system_python().name}/site-packages"
    return Path(os.environ.get("LAB_TRAINER_SITE", default)).resolve()


def trainer_environment(target: Path) -> None:
    """A python for jobs that sees the installed trainer: a node's image, or the shared filesystem's virtual environment."""
    system, site = system_python(), trainer_site()
    if not (target / "bin" / "python").exists():
        subprocess.run([system, "-m", "venv", "--without-pip", target], check=True)
    (target / "lib" / system.name / "site-packages" / "dolphin-lab.pth").write_text(f"{site}\n")
    ninja = site.parents[2] / "bin" / "ninja"
    if ninja.exists():
        shutil.copy2(ninja, target / "bin" / "ninja")


def fetch_uv(python: Path, wheels: Path, program: Path) -> None:
    """The `uv` that SkyPilot's runtime on a node is made with."""
    if program.exists():
        return
    subprocess.run([python, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, "uv"], check=True)
    wheel = zipfile.ZipFile(next(wheels.glob("uv-*.whl")))
    write_program(program, wheel.read(next(name for name in wheel.namelist() if name.endswith("/scripts/uv"))))


def uv_script(program: Path, after_installing_sky: str) -> str:
    """A `uv` for nodes. SkyPilot asks for Python 3.10 by version: it gets this machine's. `after_installing_sky` are lines of
    bash that change the installed SkyPilot, in $VIRTUAL_ENV."""
    return f"""\
#!/bin/bash
export UV_PYTHON_DOWNLOADS=never
declare -a words
for word in "$@"; do if [ "$word" = 3.10 ]; then words+=({system_python()}); else words+=("$word"); fi; done
{program} "${{words[@]}}" || exit
if [[ " $* " == *" pip install "*skypilot-*.whl* ]]; then
{textwrap.indent(textwrap.dedent(after_installing_sky).rstrip(), "  ")}
fi
"""


def curl_script(uv: Path) -> str:
    """A `curl` for nodes: where it would fetch the installer of `uv`, one that installs this program."""
    return f"""\
#!/bin/bash
if [[ " $* " == *"https://astral.sh/uv/install.sh"* ]]; then
  echo 'install -D -m 755 {uv} "$UV_INSTALL_DIR/uv"'
else exec /usr/bin/curl "$@"; fi
"""


class Client:
    """The lab's `sky`, with the lab's variables."""

    def __init__(self, lab: Path, environment: Mapping[str, str]) -> None:
        self._program, self._settings = (lab / "python").readlink().with_name("sky"), {**os.environ, **environment}

    def sky(self, *arguments: str, check: bool = True, quiet: bool = False, timeout: float | None = None) -> int:
        """Its exit code; 1 where it ran out of time."""
        output = subprocess.DEVNULL if quiet else None
        try:
            done = subprocess.run([self._program, *arguments], env=self._settings, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                  check=check, timeout=timeout)  # fmt: skip
        except subprocess.TimeoutExpired:
            return 1
        return done.returncode

    def start_api_server(self) -> None:
        for _ in range(5):  # now and then its port is not free yet right after a stop
            if self.sky("api", "start", check=False) == 0:
                return
            time.sleep(10)
        raise SystemExit("lab: SkyPilot's API server does not start; its log is ~/.sky/api_server/server.log")

    def stop_everything(self) -> None:
        for arguments in (("jobs", "cancel", "-ay"), ("down", "-ay"), ("api", "stop")):
            self.sky(*arguments, check=False, quiet=True, timeout=180)


def path_with(lab: Path) -> str:
    """PATH with the client's programs first."""
    return ":".join(dict.fromkeys([str((lab / "python").readlink().parent), *os.environ["PATH"].split(":")]))


def write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """A catalog of SkyPilot's: without a checksum beside it, it counts as placed by hand and is never fetched."""
    import csv

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows(rows)


def write_program(path: Path, content: bytes | str) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o755)


def alive(file: Path, program: str) -> int | None:
    """The process id in the file while it runs this program; a number that another process has by now is not one."""
    try:
        pid = int(file.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return None
    return pid if program == name or any(Path(word).name == program for word in words) else None


def end(pid: int | None, timeout_s: float = 0.0) -> None:
    """SIGTERM, and SIGKILL to what is there after the time-out; with 0 nobody waits."""
    if not pid:
        return
    try:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while timeout_s and Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.1)
    except ProcessLookupError:
        return


def wait_for(condition: Callable[[], Any], timeout_s: float, logs: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"lab: waited {timeout_s:.0f} s in vain; the log is {logs}")
        time.sleep(0.2)
