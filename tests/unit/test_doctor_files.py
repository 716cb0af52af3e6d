"""PyPI has packages called `trainer` and `launcher`: one that was installed later has replaced files of ours without a word."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.metadata import PathDistribution
from pathlib import Path

from launcher.backends.checks import Health
from launcher.commands.doctor import check_own_files


def install(site: Path, name: str, files: dict[str, str]) -> PathDistribution:
    """As pip leaves it: files, and a RECORD with their hashes."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = []
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,"]) + "\n")
    return PathDistribution(info)


def found(*installed: PathDistribution) -> Callable[[], list[PathDistribution]]:
    return lambda: list(installed)


OURS = {"launcher/cli/main.py": "ours", "trainer/__init__.py": "", "trainer/run/spec.py": "ours", "share/x.yaml": "x"}


def test_an_installation_as_it_was_made_is_fine(tmp_path: Path) -> None:
    (finding,) = check_own_files(
        found(install(tmp_path, "dolphin-launcher", OURS), install(tmp_path, "numpy", {"numpy/a.py": ""}))
    )
    assert finding.health is Health.OK


def test_a_file_that_another_distribution_replaced_is_named_with_its_owner(tmp_path: Path) -> None:
    ours = install(tmp_path, "dolphin-launcher", OURS)
    other = install(tmp_path, "trainer", {"trainer/__init__.py": "theirs", "trainer/trainer.py": "theirs"})
    (finding,) = check_own_files(found(ours, other))
    assert finding.health is Health.MISSING
    assert finding.found == "trainer/__init__.py overwritten by trainer 1.0"
    assert finding.advice.startswith("`pip uninstall trainer`, then `pip install --force-reinstall")


def test_a_file_that_was_removed_or_changed_by_nobody_known_is_told_too(tmp_path: Path) -> None:
    ours = install(tmp_path, "dolphin-launcher", OURS)
    (tmp_path / "launcher" / "cli" / "main.py").unlink()
    (finding,) = check_own_files(found(ours))
    assert finding.found == "launcher/cli/main.py overwritten"
    assert finding.advice.startswith("`pip install --force-reinstall")


def test_a_neighbour_of_the_same_name_that_touched_nothing_is_a_note(tmp_path: Path) -> None:
    ours = install(tmp_path, "dolphin-launcher", OURS)
    other = install(tmp_path / "elsewhere", "launcher", {"launcher/other.py": "theirs"})
    (finding,) = check_own_files(found(ours, other))
    assert finding.health is Health.NOTE
    assert "launcher 1.0" in finding.found


def test_this_checkout_is_as_it_was_installed() -> None:
    (finding,) = check_own_files()
    assert finding.health is not Health.MISSING
