"""The wheel that a jobs controller on a machine of its own installs: strategy, plugin and policy, without the rest of dolphin.

Made of this installation's own modules, with their imports renamed; nothing is written twice. Knows no SkyPilot.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import version
from pathlib import Path

import launcher.backends.sky.deadline
import launcher.runs.policy

PACKAGE = "dolphin_deadline"
PLUGIN_CLASS = "plugin.DeadlinePlugin"
ROOMS = {"launcher.backends.sky.deadline": PACKAGE, "launcher.runs.policy": f"{PACKAGE}.policy"}
"""Where each of dolphin's packages is in the wheel."""
LEFT_OUT = frozenset({"simulate.py"})
_EPOCH = (1980, 1, 1, 0, 0, 0)


def sources() -> dict[str, str]:
    """Path in the wheel to text."""
    found = {}
    for package in (launcher.backends.sky.deadline, launcher.runs.policy):
        folder = ROOMS[package.__name__].replace(".", "/")
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            if path.name not in LEFT_OUT:
                found[f"{folder}/{path.name}"] = _renamed(path.read_text(encoding="utf-8"))
    return found


def write(folder: Path) -> Path:
    """The wheel, in place of older ones of its name; the same bytes for the same dolphin. Its version holds a hash of what is in
    it: a controller installs a wheel once for each file name."""
    texts = sources()
    digest = hashlib.sha256("".join(f"{name}\n{text}" for name, text in texts.items()).encode()).hexdigest()
    stated = f"{version('dolphin-launcher')}+{digest[:12]}"
    info = f"{PACKAGE}-{stated}.dist-info"
    texts[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {stated}\nRequires-Python: >=3.10\n"
    texts[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: dolphin\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_hash(text)},{len(text.encode())}\n" for name, text in texts.items())
    texts[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PACKAGE}-{stated}-py3-none-any.whl"
    arriving = target.with_suffix(".new")
    with zipfile.ZipFile(arriving, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, text in texts.items():
            wheel.writestr(zipfile.ZipInfo(name, _EPOCH), text)
    arriving.replace(target)
    for older in folder.glob(f"{PACKAGE}-*.whl"):
        if older != target:
            older.unlink()
    return target


def _renamed(text: str) -> str:
    for ours, theirs in ROOMS.items():
        text = text.replace(ours, theirs)
    return text


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
