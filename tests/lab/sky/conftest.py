"""The lab, up for this folder's tests."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sky_lab import ROOT, SCRIPT, Lab, require, settings


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    require("lab")
    folder = Path(os.environ.get("DOLPHIN_LAB", "/var/lib/dolphin-lab"))
    with_lab = settings(folder)
    subprocess.run([str(SCRIPT), "up"], env=with_lab, check=True, timeout=1200)
    lines = subprocess.run([str(SCRIPT), "env"], env=with_lab, capture_output=True, text=True, check=True).stdout
    exported = dict(word.split("=", 1) for line in lines.splitlines() for word in shlex.split(line)[1:])
    example, quickstart = ROOT / "examples" / "quickstart", tmp_path_factory.mktemp("quickstart")
    subprocess.run(
        [sys.executable, str(example / "build.py"), "--out", str(quickstart)], check=True, capture_output=True
    )
    shutil.copy(example / "job.yaml", quickstart)
    home = {"DOLPHIN_HOME": str(tmp_path_factory.mktemp("dolphin"))}  # the lab's own keeps the runs of earlier days
    yield Lab(folder, with_lab | exported | home, quickstart / "job.yaml")
    if os.environ.get("DOLPHIN_LAB_KEEP") != "1":
        subprocess.run([str(SCRIPT), "down"], env=with_lab, check=True, timeout=600)
