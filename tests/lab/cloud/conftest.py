"""The cloud lab, up for this folder's tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.cloud.places import LAB, ask
from tests.support.cloud_lab import SCRIPT, CloudLab, require_cloud
from tests.support.sky_lab import built_quickstart, exported, settings


@pytest.fixture(scope="session")
def cloud_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudLab]:
    require_cloud()
    with_lab = settings(LAB, "DOLPHIN_CLOUD_LAB")
    subprocess.run([*SCRIPT, "up"], env=with_lab, check=True, timeout=1800)
    home = {"DOLPHIN_HOME": str(tmp_path_factory.mktemp("dolphin"))}
    quickstart = built_quickstart(tmp_path_factory.mktemp("quickstart"))
    yield CloudLab(LAB, with_lab | exported(SCRIPT, with_lab) | home, quickstart)
    if os.environ.get("DOLPHIN_LAB_KEEP") != "1":
        subprocess.run([*SCRIPT, "down"], env=with_lab, check=True, timeout=600)


@pytest.fixture
def cloud(cloud_lab: CloudLab) -> CloudLab:
    """The lab, every shortage over."""
    ask("/lab/plenty")
    return cloud_lab
