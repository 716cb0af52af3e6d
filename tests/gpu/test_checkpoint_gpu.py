"""On a GPU the state comes from other memory, is copied by another engine and updated by a fused optimizer."""

import pytest
import torch

from tests.support.checkpoint_runs import do_phases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("offload", ["none", "optimizer"])
def test_a_run_on_a_gpu_goes_on_bit_for_bit(tmp_path, offload):
    common = {"precision": "bf16", "steps": 6, "train": {"offload": offload}}
    cases = {stage: {"run_dir": str(tmp_path / f"run-{stage}"), "stage": stage, **common} for stage in (1, 2, 3)}
    whole = [{**run, "seed": 1, "save_at": [2, 4]} for run in cases.values()]
    again = [{**run, "seed": 99, "attempt": 2} for run in cases.values()]
    environment = {"CHECKPOINT_DEVICE": "cuda", "DS_ACCELERATOR": "cuda", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    first, second = do_phases(tmp_path, [(1, whole), (1, again)], **environment)
    for before, after in zip(first, second, strict=True):
        assert (before["error"], after["error"]) == (None, None)
        assert after["resumed_at"] == 4
        assert before["is_lent"] == (offload == "optimizer")
        assert after["losses"] == {step: loss for step, loss in before["losses"].items() if int(step) > 4}
