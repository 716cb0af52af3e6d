"""Whether a deadline is kept by SkyPilot's jobs controller, and how it comes to be: the plugin's files in ~/.sky.

SkyPilot reads plugins.yaml where its API server starts, and sends remote_plugins.yaml with the wheels of controller_wheel_path to a
controller on a machine of its own. Both files may hold plugins of the person's own: an entry is added, nothing else is touched.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from launcher.backends.sky import plugin_wheel
from launcher.backends.sky.controller import endpoint, is_consolidated, is_server_here
from launcher.backends.sky.deadline.names import PLUGIN, VERSION
from launcher.runs import ledger
from launcher.runs.errors import BackendError
from trainer.run.run_folder import write_atomic

LOCAL, REMOTE = "~/.sky/plugins.yaml", "~/.sky/remote_plugins.yaml"
LOCAL_CLASS = "launcher.backends.sky.deadline.plugin.DeadlinePlugin"
REMOTE_CLASS = f"{plugin_wheel.PACKAGE}.{plugin_wheel.PLUGIN_CLASS}"
WHEELS = "sky-plugin"
"""In DOLPHIN_HOME: the wheel."""
WHEEL_PATH = "controller_wheel_path"
FIX = "`dolphin doctor --fix` sets it up"
RESTART = "`sky api stop; sky api start` (it starts anew with the next command; jobs that run are not touched)"
TIMEOUT_S = 3.0


def deadline_is_enforced() -> str | None:
    """None where the jobs controller has the strategy; else why not and what to do, in a line."""
    address, is_here = endpoint(), is_server_here()
    if is_here and not _is_configured():  # its later processes would lack it, whatever the server has loaded
        return f"SkyPilot lacks dolphin's plugin: {FIX}"
    loaded = _loaded(address)
    if loaded is None:
        return f"the API server at {address} does not say which plugins it has"
    if not loaded and not is_here:
        return f"the API server at {address} lacks dolphin's plugin; who runs it finds the way in docs/clouds.md"
    if not loaded:
        return f"SkyPilot's API server has yet to load dolphin's plugin: {RESTART}"
    if is_consolidated() is False and not _controller_gets_it():
        return f"SkyPilot's jobs controller, a VM of its own, would lack dolphin's plugin: {FIX}"
    return None


def set_up() -> list[str]:
    """Write the wheel and both files; lines about what was done. BackendError, with what to write by hand, for a file that cannot
    be added to."""
    wheel = plugin_wheel.write(ledger.home() / WHEELS)
    lines = [f"wrote {wheel}"]
    local, remote = Path(LOCAL).expanduser(), Path(REMOTE).expanduser()
    folder = _read(local).get(WHEEL_PATH)
    if folder and Path(str(folder)).expanduser() != wheel.parent:
        wheel = plugin_wheel.write(Path(str(folder)).expanduser())
        lines.append(f"wrote {wheel}, beside your own: {WHEEL_PATH} names that folder")
    for path, name, more in (
        (local, LOCAL_CLASS, {} if folder else {WHEEL_PATH: str(wheel.parent)}),
        (remote, REMOTE_CLASS, {}),
    ):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        added = with_plugin(text, name, more)
        if added is None:
            raise BackendError(
                f"{path}: cannot be added to without touching what is in it; add `- class: {name}` to its `plugins`"
                + "".join(f", and `{key}: {value}`" for key, value in more.items())
            )
        if added != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, added)
            lines.append(f"{'added to' if text else 'wrote'} {path}")
    return lines


def with_plugin(text: str, name: str, more: dict[str, str]) -> str | None:
    """A plugins file with one entry more, every other line as it was; None where that cannot be done line by line."""
    try:
        before = yaml.safe_load(text) or {}
        wanted = {**before, **{key: value for key, value in more.items() if key not in before}}
        if not any(entry.get("class") == name for entry in before.get("plugins") or ()):
            wanted["plugins"] = [*(before.get("plugins") or ()), {"class": name}]
    except (yaml.YAMLError, AttributeError, TypeError):
        return None
    if wanted == before:
        return text
    head = "".join(f"{key}: {json.dumps(value)}\n" for key, value in more.items() if key not in before)
    lines = [line for line in text.splitlines(keepends=True) if before or line.strip() != "{}"]
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    if wanted.get("plugins") != before.get("plugins"):
        at = next((n for n, line in enumerate(lines) if re.match(r"plugins:\s*(\[\s*\]\s*)?(#.*)?$", line)), None)
        if at is None and "plugins" in before:
            return None
        if at is None:
            lines = [*lines, "plugins:\n", f"  - class: {name}\n"]
        else:
            lines[at] = re.sub(r"\[\s*\]", "", lines[at])
            first = next((line for line in lines[at + 1 :] if line.lstrip().startswith("- ")), "  - ")
            # Behind the last entry, whose lines are indented, so that the order of the others stays.
            end = next((n for n in range(at + 1, len(lines)) if re.match(r"[^\s#-]", lines[n])), len(lines))
            lines.insert(end, f"{first[: len(first) - len(first.lstrip())]}- class: {name}\n")
    added = head + "".join(lines)
    try:
        return added if yaml.safe_load(added) == wanted else None
    except yaml.YAMLError:
        return None


def _is_configured() -> bool:
    return LOCAL_CLASS in _classes(Path(LOCAL).expanduser())


def _controller_gets_it() -> bool:
    folder = _read(Path(LOCAL).expanduser()).get(WHEEL_PATH)
    wheels = Path(str(folder)).expanduser().glob(f"{plugin_wheel.PACKAGE}-*.whl") if folder else ()
    return REMOTE_CLASS in _classes(Path(REMOTE).expanduser()) and any(wheels)


def _classes(path: Path) -> list[str]:
    entries = _read(path).get("plugins")
    return (
        [str(entry.get("class")) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _loaded(address: str) -> bool | None:
    """Whether the server has this version of the plugin. One of this machine that is not up has what it will read when it starts.
    None where it does not tell."""
    try:
        told = json.loads(_asked(f"{address}/api/plugins"))
        return any(one.get("name") == PLUGIN and one.get("version") == VERSION for one in told["plugins"])
    except urllib.error.HTTPError:
        return None
    except OSError:
        return True if is_server_here() else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _asked(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        body: bytes = answer.read(1_000_000)
        return body
