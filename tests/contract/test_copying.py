"""Half a model looks like a model: what is copied home, by whatever way, is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.backends.sky.bucket_copy import copy_prefix
from launcher.backends.sky.reach import OverSsh
from launcher.runs.copying import copy_folder
from launcher.runs.errors import BackendError

Copy = Callable[[Path, Path], Path]
SSH = '#!/bin/sh\nfor last; do :; done\n{ sh -c "$last"; echo $? > "$0.code"; } | %s\nexit "$(cat "$0.code")"\n'
"""Stands in for ssh: runs the command in a shell of this machine, and passes on what it prints."""


def ssh_that(passes_on: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "ssh").write_text(SSH % passes_on)
    (folder / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(params=["folder", "bucket", "ssh"])
def copy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    if request.param == "folder":
        return copy_folder
    if request.param == "bucket":
        return lambda source, target: copy_prefix(str(source), target)
    ssh_that("cat", tmp_path, monkeypatch)
    return lambda source, target: OverSsh("lab").copy(str(source), target)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "there" / "the model's folder"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_arrives_under_the_name_that_was_asked_for(copy: Copy, model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for target in (tmp_path / "home" / "new", empty):
        assert copy(model, target) == target
        assert files(target) == files(model)
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"new"}


def test_what_is_not_there_leaves_nothing_behind(copy: Copy, tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        copy(tmp_path / "nowhere", tmp_path / "home" / "new")
    assert list((tmp_path / "home").iterdir()) == []


def test_a_folder_in_use_is_never_mixed_with_a_copy(copy: Copy, model: Path, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "model.safetensors").write_text("mine")
    with pytest.raises(BackendError, match="is not an empty folder"):
        copy(model, used)
    assert files(used) == {"model.safetensors": b"mine"}


def test_a_connection_that_breaks_in_the_middle_leaves_nothing_that_looks_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh_that("head -c 100000", tmp_path, monkeypatch)
    with pytest.raises(BackendError, match="cannot be copied"):
        OverSsh("lab").copy(str(model), tmp_path / "home" / "new")
    assert list((tmp_path / "home").iterdir()) == []


CHANGED = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Offending ED25519 key in /home/someone/.ssh/known_hosts:1
Host key for [10.0.0.1]:2222 has changed and you have requested strict checking.
Host key verification failed."""


def test_a_host_key_that_changed_is_one_line_with_the_way_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh_that("cat", tmp_path, monkeypatch)
    (tmp_path / "bin" / "ssh").write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{CHANGED}\nEND\nexit 255\n")
    there = OverSsh("lab")
    for ask in (lambda: there.copy(str(model), tmp_path / "new"), lambda: there.read(str(model / "model.safetensors"))):
        with pytest.raises(BackendError, match=r"the host key of \[10.0.0.1\]:2222 is not the one") as raised:
            ask()
        assert "ssh-keygen -R '[10.0.0.1]:2222'" in str(raised.value)
        assert "\n" not in str(raised.value)
