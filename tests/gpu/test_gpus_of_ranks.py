"""What only several GPUs in one machine can show."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.support.checkpoint_runs import do_phases

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")


def test_a_save_leaves_each_rank_on_its_own_gpu_alone(tmp_path):
    run = {"run_dir": str(tmp_path / "run"), "stage": 2, "precision": "bf16", "seed": 1, "steps": 4, "save_at": [2]}
    environment = {"CHECKPOINT_DEVICE": "cuda", "DS_ACCELERATOR": "cuda", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    [[done]] = do_phases(tmp_path, [(2, [run])], **environment)
    assert done["error"] is None
    contexts = Counter(done["gpus_of_processes"])
    assert len(contexts) >= 2, "nvidia-smi shows no processes here"
    assert set(contexts.values()) == {1}, f"processes on each GPU: {contexts}"
