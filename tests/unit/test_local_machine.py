"""A GPU that is not there, a copy that is half there, a backend that is not installed."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest

from launcher.backends import base
from launcher.backends.base import get_backend
from launcher.backends.home import machine
from launcher.backends.home.machine import local_gpus
from launcher.jobfile.spec import JobSpec
from launcher.runs.copying import copy_folder
from launcher.runs.errors import BackendError, BadUsage

FOUR_GPUS = r"printf 'GPU-aa, NVIDIA A, 1000\nGPU-b1, NVIDIA B, 2000\nGPU-b2, NVIDIA C, 3000\nGPU-cc, NVIDIA Odd, Name, [N/A]\n'"
"""Answers of nvidia-smi: uuid, name, memory in MiB."""


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
    nvidia_smi(FOUR_GPUS)
    assert [name for name, _ in local_gpus()] == ["NVIDIA A", "NVIDIA B", "NVIDIA C", "NVIDIA Odd, Name"]
    assert [memory for _, memory in local_gpus()] == [1000, 2000, 3000, None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert local_gpus() == [("NVIDIA C", 3000), ("NVIDIA Odd, Name", None)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-b")
    assert local_gpus() == [("NVIDIA Odd, Name", None)]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert local_gpus() == []


@pytest.mark.skipif(find_spec("torch") is None, reason="the trainer is not installed")
@pytest.mark.parametrize(
    "visible",
    [
        None, "0,1,2,3", "2,3", " 3 , 1", "3", "7", "2,9,3", "2,2", "1,-1,2", "-1", "", "NoDevFiles", "none", "1gpu,2x", "+1,2", "0,,1",
        "GPU-a", "GPU-b1,GPU-a", "GPU-b", "GPU-a,GPU-z,GPU-c", "GPU-a,GPU-aa", "GPU-a,1", "1,GPU-a",
    ],
)  # fmt: skip
def test_as_many_gpus_are_counted_as_the_ranks_can_take(visible, nvidia_smi, monkeypatch):
    """Held against torch's own reading of CUDA_VISIBLE_DEVICES, by which a rank takes its GPU."""
    import torch

    nvidia_smi(FOUR_GPUS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: 4)
    monkeypatch.setattr(torch.cuda, "_raw_device_uuid_nvml", lambda: ["GPU-aa", "GPU-b1", "GPU-b2", "GPU-cc"])
    assert len(local_gpus()) == torch.cuda._device_count_nvml()


def test_parts_of_a_gpu_are_counted_by_their_names(nvidia_smi, monkeypatch):
    nvidia_smi(FOUR_GPUS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")
    assert local_gpus() == [("NVIDIA A", None), ("NVIDIA A", None)]


def test_the_run_numbers_gpus_as_they_were_counted():
    """By their place on the bus, as nvidia-smi does: CUDA's own order begins with the fastest card."""
    assert machine.as_counted({})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert machine.as_counted({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


@pytest.mark.parametrize("name", ["local", "docker"])
def test_gpus_that_only_the_run_would_be_told_of_are_refused(name, nvidia_smi, tmp_path):
    """The launcher would count four, and start four ranks for two GPUs."""
    nvidia_smi(FOUR_GPUS)
    job = JobSpec.model_validate(
        {"name": "t", "model": {"base": "/m"}, "data": {"sources": [{"path": "/d"}]}, "env": {"CUDA_VISIBLE_DEVICES": "2,3"}}
    )  # fmt: skip
    with pytest.raises(BadUsage, match=r"env\.CUDA_VISIBLE_DEVICES: .*: CUDA_VISIBLE_DEVICES=2,3 dolphin launch"):
        get_backend(name).place(job, "run", tmp_path, None)
    assert get_backend(name).place(job.model_copy(update={"env": {}}), "run", tmp_path, None).nproc == 4


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
