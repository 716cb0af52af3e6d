"""A real wheel, built and looked into: what only a checkout has would be missed by everybody else, and after a launch began."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.unit.test_tree import ROOT, tracked

PACKED = ("launcher", "trainer", "sky", "constraints.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE")
CPU, CUDA = (f"registry.example/me/dolphin@sha256:{digit * 64}" for digit in "ab")


def build(folder: Path, images: str | None) -> Path:
    """The wheel of what git tracks, from the hook that pip and every other builder calls, unpacked as pip would; `images` as
    a release states them."""
    source = folder / "source"
    for path in tracked():
        if path.relative_to(ROOT).parts[0] in PACKED:
            (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, source / path.relative_to(ROOT))
    environment = {name: value for name, value in os.environ.items() if name != "DOLPHIN_RELEASE_IMAGES"}
    if images is not None:
        environment["DOLPHIN_RELEASE_IMAGES"] = images
    program = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, folder], cwd=source, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("release"), f"cpu={CPU} cuda={CUDA}")


def told(installed: Path, program: str) -> str:
    """What a program prints that imports dolphin from the unpacked wheel, and not from this checkout."""
    program = f"import launcher; assert launcher.__file__.startswith({str(installed)!r}), launcher.__file__\n{program}"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=installed, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_lands_in_site_packages_but_the_two_packages(release: Path) -> None:
    """A `sky` there would be SkyPilot's; files outside of it are lost with `pip install --user`. The command goes to bin."""
    [data] = [path for path in release.iterdir() if path.suffix == ".data"]
    assert [path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()] == ["scripts/dolphin"]
    rest = [path.name for path in release.iterdir() if path.suffix not in (".dist-info", ".data")]
    assert sorted(rest) == ["launcher", "trainer"]


def test_an_installed_launcher_has_the_template_that_a_launch_on_a_cluster_needs(release: Path) -> None:
    """From a checkout it is found beside the packages, so that only a real wheel shows that it is missing."""
    program = "from launcher.backends.sky.task import template_text; print(template_text(), end='')"
    assert told(release, program) == (ROOT / "sky" / "task.yaml").read_text()
    program = "from launcher.backends.sky.task import constraints; print(constraints(), end='')"
    assert told(release, program) == (ROOT / "constraints.txt").read_text()


def test_type_checkers_and_lawyers_find_what_they_look_for(release: Path) -> None:
    assert (release / "launcher" / "py.typed").is_file()
    assert (release / "trainer" / "py.typed").is_file()
    (metadata,) = release.glob("*.dist-info")
    assert (metadata / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "License-Expression: Apache-2.0" in (metadata / "METADATA").read_text()


def test_a_release_knows_the_images_that_it_was_built_with(release: Path) -> None:
    program = "from launcher.backends.release import image_of_release as i; print(i('cpu'), i('cuda'))"
    assert told(release, program).split() == [CPU, CUDA]


@pytest.mark.parametrize("images", ["cpu=me/dolphin:1 cuda=me/dolphin:1", f"cuda={CUDA}"])
def test_a_release_with_a_tag_that_may_move_or_half_of_its_images_is_not_built(tmp_path: Path, images: str) -> None:
    with pytest.raises(AssertionError, match="DOLPHIN_RELEASE_IMAGES"):
        build(tmp_path, images)
