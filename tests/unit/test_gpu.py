"""A node that is paid for and cannot train says so in a line, at once, and not after a restart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from trainer.engine import gpu
from trainer.run.exits import TrainingFailed

TRAINER = Path(__file__).parents[2] / "trainer"
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by downloading and "
    "installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


def refuse(message: str) -> None:
    raise RuntimeError(message)


def test_a_driver_that_is_too_old_is_no_gpu_though_nvml_counts_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "init", lambda: refuse(TOO_OLD))
    with pytest.raises(
        TrainingFailed, match=r"rank 3 has no GPU .* driver on your system is too old \(found version 12020\) \("
    ):
        gpu.require(3)


def test_a_torch_without_kernels_for_this_gpu_is_found_by_running_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(
        torch, "ones", lambda *_, **__: refuse("CUDA error: no kernel image is available for execution")
    )
    with pytest.raises(TrainingFailed, match="no kernel image is available"):
        gpu.require(0)


def test_fewer_gpus_than_ranks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    with pytest.raises(TrainingFailed, match="torch sees 4 GPUs here"):
        gpu.require(7)


def test_a_rank_goes_by_its_jobs_device_and_not_by_what_the_machine_has() -> None:
    """A CPU job beside GPUs that are somebody else's. `dolphin spectrum`, `eval` and `chat` alone choose a device, as
    nobody says one."""
    asking = [
        path.relative_to(TRAINER).as_posix()
        for path in sorted(TRAINER.rglob("*.py"))
        if re.search(r"cuda\.is_available|accelerator\.is_available|cuda\.device_count", path.read_text())
    ]
    assert asking == ["engine/gpu.py", "finished/chat.py", "finished/harness.py", "model/spectrum.py"]
