"""A GPU whose memory runs out: the person learns which setting helps, and pays for no restart that ends the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.engine import out_of_memory
from trainer.run.exits import TrainingFailed
from trainer.run.settings.data import DataSpec, SourceSpec
from trainer.run.settings.model import ModelSpec
from trainer.run.settings.train import OptimizerSettings
from trainer.run.spec import NodeJob, TrainSpec

WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 44.40 GiB of which 1.2 GiB is free. "
    "Including non-PyTorch memory, this process has 43.1 GiB memory in use."
)


def job_of(nproc: int = 8, **train: Any) -> NodeJob:
    spec = TrainSpec(
        name="big", model=ModelSpec(base="x"), data=DataSpec(sources=(SourceSpec(path="x"),)),
        train=OptimizerSettings(**{"global_batch": 64, "zero": 1, **train}),
    )  # fmt: skip
    return NodeJob(run_id="r", run_dir="/r", cache_dir="/c", nproc=nproc, device="cuda", spec=spec)


def run_out(job: NodeJob, steps: Callable[[], int]) -> None:
    with out_of_memory.explained(job, steps):
        raise torch.OutOfMemoryError(WORDS)


def test_before_the_first_step_no_restart_would_help() -> None:
    with pytest.raises(
        TrainingFailed, match=r"memory ran out \(tried to allocate 2\.00 GiB.*train\.micro_batch below 4"
    ):
        run_out(job_of(micro_batch=4), lambda: 60)


def test_after_a_step_a_fresh_start_may_do() -> None:
    steps = iter((60, 61))
    with pytest.raises(torch.OutOfMemoryError, match=r"dolphin resume --set"):
        run_out(job_of(), lambda: next(steps))


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "in cuBLAS"),
        (
            "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error (run with NCCL_DEBUG=INFO for "
            "details), NCCL version 2.28.9 ncclUnhandledCudaError: Call to CUDA function failed. Last error: Cuda failure 2 "
            "'out of memory'",
            "in NCCL",
        ),
        ("ncclUnhandledCudaError: Last error: Failed to CUDA calloc async 4194304 bytes", "in NCCL"),
        ("CUDA error: out of memory", ""),
    ],
)
def test_a_library_that_allocates_past_torch_is_understood_too(message: str, where: str) -> None:
    with pytest.raises(TrainingFailed, match=rf"the GPU's memory ran out.*{where}.*train\.micro_batch below 4"):
        with out_of_memory.explained(job_of(micro_batch=4), lambda: 0):
            raise RuntimeError(message)


def test_only_what_the_job_does_not_do_already_is_advised() -> None:
    advice = out_of_memory.advice(
        job_of(gradient_checkpointing=True, activation_offloading=True, zero=3, loss_chunk=2048)
    )
    assert "train.offload optimizer, train.loss_chunk 512" in advice
    assert "zero" not in advice
    assert "checkpointing" not in advice
    assert "micro_batch" not in advice
    everything = job_of(1, gradient_checkpointing=True, activation_offloading=True, offload="optimizer", loss_chunk=512)
    assert "more memory" in out_of_memory.advice(everything)


def test_only_a_rank_with_a_gpu_asks_it_and_one_too_full_to_answer_hides_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a CPU job the machine's GPUs are somebody else's; asking would open a context there."""
    asked = []

    def answer() -> None:
        asked.append(True)
        raise torch.OutOfMemoryError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", answer)
    with pytest.raises(TrainingFailed, match=r"ran out \(tried to allocate 2\.00 GiB\): try"):
        run_out(job_of(), lambda: 0)
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(TrainingFailed, match=r"ran out \(tried to allocate 2\.00 GiB\): try"):
        run_out(job_of(), lambda: 0)
    assert asked == [True]


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="odd"), out_of_memory.explained(job_of(), lambda: 0):
        raise RuntimeError("odd")
