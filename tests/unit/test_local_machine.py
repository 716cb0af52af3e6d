"""A GPU that is not there, a copy that is half there, a backend that is not installed."""

from __future__ import annotations

import os
import sys

import pytest

from launcher.backends import base
from launcher.backends.base import get_backend
from launcher.backends.home.machine import local_gpus
from launcher.runs.copying import copy_folder
from launcher.runs.errors import BackendError, BadUsage


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def install(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


def test_gpus_are_counted_by_what_the_run_would_see(nvidia_smi, monkeypatch):
    nvidia_smi("printf 'NVIDIA L40S, 46068\\nNVIDIA L40S, 46068\\nNVIDIA Odd, Name, [N/A]\\n'")
    assert local_gpus() == [("NVIDIA L40S", 46068), ("NVIDIA L40S", 46068), ("NVIDIA Odd, Name", None)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert len(local_gpus()) == 1
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert local_gpus() == []


def test_a_driver_without_a_device_is_no_gpu(nvidia_smi):
    nvidia_smi("echo 'No devices were found'; exit 6")
    assert local_gpus() == []


def test_no_driver_is_no_gpu(nvidia_smi, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_gpus() == []


def test_a_copy_that_fails_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    source = tmp_path / "model"
    source.mkdir()
    (source / "a.safetensors").write_bytes(b"a")
    (source / "b.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(BackendError, match="cannot copy"):
        copy_folder(source, tmp_path / "home" / "mine")
    assert list((tmp_path / "home").iterdir()) == []


def test_a_copy_never_mixes_with_what_is_there(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    (source / "a").write_text("new")
    used = tmp_path / "used"
    used.mkdir()
    (used / "a").write_text("mine")
    with pytest.raises(BackendError, match="not an empty folder"):
        copy_folder(source, used)
    assert (used / "a").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (copy_folder(source, tmp_path / "empty") / "a").read_text() == "new"


def test_a_backend_that_lacks_its_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "needy_backend.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(base.BACKENDS, "needy", base.Registered("needy_backend:Needy", "x:checks"))
    monkeypatch.setitem(base.BACKENDS, "absent", base.Registered("launcher.backends.absent_backend:Absent", "x:checks"))
    with pytest.raises(BackendError, match="needs the package surely_not_installed"):
        get_backend("needy")
    with pytest.raises(BadUsage, match="not part of this installation"):
        get_backend("absent")
    assert "needy_backend" not in sys.modules
