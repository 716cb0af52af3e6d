"""A node's root folder, and what cloud-init makes in it: users, keys, files. Runs as the node's process 1, before it serves.

/usr, /etc and /opt are this machine's with a layer of the node's own above them; /home, /root, /tmp, /var and /run are its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.lab.cloud.network import call

SSHD_CONFIG = "/etc/ssh/sshd_lab"
MS_BIND, MS_REC, MS_PRIVATE, MS_RDONLY, MS_REMOUNT = 4096, 16384, 1 << 18, 1, 32
_FOLDERS = {
    "tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "home": 0o755, "run/sshd": 0o755, "run/lock": 0o1777, "var/log": 0o755,
    "var/lib/sudo": 0o700, "proc": 0o755, "sys": 0o755, "dev": 0o755, "mnt": 0o755,
}  # fmt: skip
_FUSE = (10, 229)
"""The device's numbers."""


def build_root(spec: dict[str, Any]) -> None:
    """Mount the node's root folder below spec["folder"], and change into it."""
    root, layers = Path(spec["folder"]) / "root", Path(spec["folder"]) / "layers"
    _mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
    root.mkdir(exist_ok=True)
    _mount(str(root), root, flags=MS_BIND)
    for lower in ("/usr", "/etc", "/opt", *spec["layered"]):
        place, name = root / lower.lstrip("/"), lower.strip("/").replace("/", "_")
        upper, work = layers / name / "upper", layers / name / "work"
        for folder in (place, upper, work):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copymode(lower, upper)
        _mount("overlay", place, "overlay", data=f"lowerdir={lower},upperdir={upper},workdir={work}")
    for name in ("bin", "sbin", "lib", "lib64", "lib32", "libx32"):
        if Path("/", name).is_symlink() and not (root / name).is_symlink():
            (root / name).symlink_to(os.readlink(f"/{name}"))
    for name, mode in _FOLDERS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    if not (root / "var/run").is_symlink():
        (root / "var/run").symlink_to("/run")
    _devices(Path(spec["folder"]), root)
    for shared in spec["shared"]:  # read-only, under the names that they have here
        target = root / shared.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        _mount(shared, target, flags=MS_BIND)
        _mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    os.chroot(root)
    os.chdir("/")
    socket.sethostname(spec["hostname"])


def cloud_init(spec: dict[str, Any]) -> None:
    """What SkyPilot's user data asks for: users with keys, and files. Its boot commands are systemd's and have no object here."""
    Path("/etc/hostname").write_text(spec["hostname"] + "\n")
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n{spec['private']} {spec['hostname']}\n")
    for name, text in spec["files"].items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if path.parent.name == "bin" else 0o600 if name.endswith("_key") else 0o644)
    is_config = spec["user_data"].startswith("#cloud-config")
    config = yaml.safe_load(spec["user_data"]) if is_config else {}
    for user in config.get("users", []):
        _add_user(user)
    for file in config.get("write_files", []):
        Path(file["path"]).parent.mkdir(parents=True, exist_ok=True)
        Path(file["path"]).write_text(file["content"])


def _add_user(user: dict[str, Any]) -> None:
    name, home = user["name"], Path("/home", user["name"])
    if home.exists():
        return  # a node that was stopped, and starts again
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["useradd", "-M", "-d", home, "-s", user.get("shell", "/bin/bash"), name], check=False, **quiet)
    subprocess.run(["usermod", "-p", "*", name], check=True)  # sshd refuses an account that is locked with `!`
    shutil.copytree("/etc/skel", home)
    (home / ".ssh").mkdir(mode=0o700)
    keys = [key.strip() for key in user.get("ssh_authorized_keys", [])]
    (home / ".ssh/authorized_keys").write_text("\n".join(keys) + "\n")
    Path(f"/etc/sudoers.d/90-{name}").write_text(f"{name} {user.get('sudo', 'ALL=(ALL) NOPASSWD:ALL')}\n")
    subprocess.run(["chown", "-R", f"{name}:{name}", home], check=True)


def _devices(folder: Path, root: Path) -> None:
    _mount("/dev", root / "dev", flags=MS_BIND | MS_REC)
    _mount("tmpfs", root / "dev/shm", "tmpfs")
    if Path("/dev/fuse").exists():  # for everybody, as on Ubuntu
        device = folder / "fuse"
        if not device.exists():
            os.mknod(device, 0o20666, os.makedev(*_FUSE))
        device.chmod(0o666)
        _mount(str(device), root / "dev/fuse", flags=MS_BIND)
    _mount("/sys", root / "sys", flags=MS_BIND | MS_REC)
    _mount("proc", root / "proc", "proc")


def _mount(source: str, target: Path, kind: str = "none", flags: int = 0, data: str = "") -> None:
    import ctypes

    call("mount", source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None)
