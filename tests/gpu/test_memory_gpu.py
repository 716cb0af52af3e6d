"""What a GPU allocates in a step with and without its optimizer's state, against the plan's formulas."""

from __future__ import annotations

import pytest
import torch

from tests.support.checkpoint_runs import do_phases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_an_optimizer_on_the_host_leaves_the_gpu(tmp_path):
    runs = [
        {
            "run_dir": str(tmp_path / offload), "stage": 3, "precision": "bf16", "seed": 1, "steps": 3, "hidden": 1024,
            "train": {"offload": offload},
        }
        for offload in ("none", "optimizer")
    ]  # fmt: skip
    environment = {"CHECKPOINT_DEVICE": "cuda", "DS_ACCELERATOR": "cuda", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    [[kept], [offloaded]] = do_phases(
        tmp_path, [(1, [run]) for run in runs], **environment
    )  # each in a process of its own
    assert (kept["error"], offloaded["error"]) == (None, None)
    state = 16 * kept["trained_elements"]  # masters, moments and accumulated gradients, in fp32
    assert kept["allocated_bytes"] - offloaded["allocated_bytes"] == pytest.approx(state, rel=0.1)
