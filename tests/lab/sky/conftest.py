"""The lab, up for this folder's tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sky_lab import SCRIPT, Lab, built_quickstart, exported, require, settings


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    require("lab")
    folder = Path(os.environ.get("DOLPHIN_LAB", "/var/lib/dolphin-lab"))
    with_lab = settings(folder)
    subprocess.run([str(SCRIPT), "up"], env=with_lab, check=True, timeout=1200)
    home = {"DOLPHIN_HOME": str(tmp_path_factory.mktemp("dolphin"))}  # the lab's own keeps the runs of earlier days
    quickstart = built_quickstart(tmp_path_factory.mktemp("quickstart"))
    yield Lab(folder, with_lab | exported([str(SCRIPT)], with_lab) | home, quickstart)
    if os.environ.get("DOLPHIN_LAB_KEEP") != "1":
        subprocess.run([str(SCRIPT), "down"], env=with_lab, check=True, timeout=600)
