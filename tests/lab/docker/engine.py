"""A Docker engine of the tests' own, and what is needed to build an image with no registry.

The engine keeps everything in a folder that is removed when it stops; it shares neither socket, images nor network rules
with an engine that the machine may run already. Kept between runs, in DOLPHIN_LAB_CACHE (default ~/.cache/dolphin-lab):
the base system and the wheels. DOLPHIN_LAB_ENGINE names a folder for the engine that is kept too, with the image's layers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
START_TIMEOUT_S = 120
CACHE = Path(os.environ.get("DOLPHIN_LAB_CACHE") or Path.home() / ".cache" / "dolphin-lab")
PACKAGES = {"dockerd": "docker.io", "debootstrap": "debootstrap"}
IN_BASE = "python3,python3-venv,python3-pip,ca-certificates"
CERTIFICATES = Path("/usr/local/share/ca-certificates")


def why_not(may_install: bool) -> str | None:
    """Why no engine can be started here; installs Debian's packages first where it may. None where it can."""
    if os.geteuid() != 0:
        return "an engine of the tests' own needs root"
    if sys.version_info[:2] != (3, 11):
        return "the base system has Python 3.11, and this Python's wheels do not fit it"
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if missing and not may_install:
        return f"{', '.join(missing)} not installed (apt-get install; DOLPHIN_REQUIRE=docker does it)"
    if missing:
        quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update"], check=True, **quiet)
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *missing], check=True, **quiet)
    return None


@dataclass
class Engine:
    """`dockerd` in a folder. The group may use its socket."""

    folder: Path
    group: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    def start(self) -> None:
        command = [
            "dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec",
            "--pidfile", f"{self.folder}/pid", "--host", self.host, "--group", str(self.group),
            "--bridge", "none", "--iptables=false", "--ip6tables=false",
        ]  # fmt: skip
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        import docker

        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(docker.errors.DockerException), contextlib.closing(self.client()) as client:
                if client.ping():
                    return
            assert self.process.poll() is None, f"dockerd ended: {self.log_tail()}"
            assert time.monotonic() < deadline, f"dockerd does not answer: {self.log_tail()}"
            time.sleep(0.2)

    def stop(self) -> None:
        """As a restart of the service does: SIGTERM, and wait."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def client(self):
        import docker

        return docker.DockerClient(base_url=self.host, timeout=120)

    def log_tail(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def running_engine(group: int) -> Iterator[Engine]:
    kept = os.environ.get("DOLPHIN_LAB_ENGINE")
    folder = Path(kept or tempfile.mkdtemp(prefix="dl-", dir="/var/tmp"))  # short: containerd's socket path has a limit
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    engine = Engine(folder, group)
    try:
        engine.start()
        yield engine
    finally:
        if engine.process is not None:
            engine.stop()
        _unmount_below(folder)
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


def _unmount_below(folder: Path) -> None:
    """What an engine that was killed left mounted."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)


def base_system() -> Path:
    """A tar file of a minimal Debian with Python and this machine's certificates."""
    certificates = sorted(CERTIFICATES.rglob("*.crt"))
    digest = hashlib.sha256(IN_BASE.encode() + b"".join(path.read_bytes() for path in certificates)).hexdigest()[:12]
    target = CACHE / f"bookworm-{digest}.tar"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        system = Path(scratch) / "system"
        log = Path(scratch) / "log"
        command = ["debootstrap", "--variant=minbase", f"--include={IN_BASE}", "bookworm", str(system)]
        with open(log, "wb") as out:
            done = subprocess.run(command, stdout=out, stderr=out, check=False)
        assert done.returncode == 0, log.read_text()[-2000:]
        for path in certificates:
            shutil.copy(path, system / CERTIFICATES.relative_to("/"))
        subprocess.run(["chroot", str(system), "update-ca-certificates"], check=True, capture_output=True)
        for leftover in (
            *(system / "var/cache/apt/archives").glob("*.deb"),
            *(system / "var/lib/apt/lists").glob("*_*"),
        ):
            leftover.unlink()
        partial = target.with_suffix(".partial")
        with tarfile.open(partial, "w") as archive:
            archive.add(system, ".")
        os.replace(partial, target)
    return target


def wheels(requirements: list[str]) -> Path:
    """A folder with the wheels of these requirements and of what they need, as constraints.txt pins them."""
    constraints = ROOT / "constraints.txt"
    digest = hashlib.sha256("\n".join(requirements).encode() + constraints.read_bytes()).hexdigest()[:12]
    target = CACHE / f"wheels-{digest}"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = CACHE / f"wheels-{digest}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "-c",
        str(constraints),
        "-w",
        str(partial),
        *requirements,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    os.replace(partial, target)
    return target


def image_context(folder: Path) -> Path:
    """The project as the image's build sees it, with every wheel, so that the build needs no index."""
    for name in ("Dockerfile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "trainer", folder / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [r for r in project["dependencies"] if r.startswith(("pydantic", "pyyaml", "psutil"))]
    kept = wheels([*project["optional-dependencies"]["train"], *needed])
    (folder / "wheels").mkdir()
    for wheel in kept.iterdir():
        (folder / "wheels" / wheel.name).symlink_to(wheel)
    return folder


def build_environment(engine: Engine) -> dict[str, str]:
    """What `dolphin launch` needs in its environment to build its image on the minimal Debian, with no network. The system
    is imported into the engine where it is not there."""
    from launcher.backends.docker import image

    system = base_system()
    base = f"dolphin-lab-base:{system.stem}"
    with contextlib.closing(engine.client()) as client:
        if not image.is_there(client, base):
            client.api.import_image_from_file(str(system), repository="dolphin-lab-base", tag=system.stem)
    arguments = f"BASE_IMAGE={base} EXTRAS=train PIP_NO_INDEX=1"
    return {image.BUILD_ARGS: arguments, image.NETWORK: "none"}


def build_image(engine: Engine, context: Path, log: Path, tell: Callable[[str], None] = lambda _: None) -> str:
    """dolphin's own CPU image of the sources in `context`, built as `dolphin launch` builds it where it is not there yet."""
    from launcher.backends.docker import image

    with contextlib.closing(engine.client()) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "ROOT", context)
        for name, value in build_environment(engine).items():
            patch.setenv(name, value)
        return image.ensure(client, None, "cpu", log, tell)
