"""On a GPU the state comes from other memory, is copied by another engine and updated by a fused optimizer; attention is dolphin's
own, over conversations that share a row."""

import pytest
import torch

from tests.support.checkpoint_runs import do_phases
from trainer.supervise.attempt import DETERMINISTIC

NUM_GPUS = torch.cuda.device_count()
CUDA = {"CHECKPOINT_DEVICE": "cuda", "DS_ACCELERATOR": "cuda", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def resumed(tmp_path, num_ranks: int, train, **environment: str):
    """(whole, resumed) runs of 6 steps at each stage; the second goes on from step 4 with other weights to begin with."""
    common = {"precision": "bf16", "steps": 6, "train": train}
    cases = {stage: {"run_dir": str(tmp_path / f"run-{stage}"), "stage": stage, **common} for stage in (1, 2, 3)}
    whole = [{**run, "seed": 1, "save_at": [2, 4]} for run in cases.values()]
    again = [{**run, "seed": 99, "attempt": 2} for run in cases.values()]
    first, second = do_phases(tmp_path, [(num_ranks, whole), (num_ranks, again)], **CUDA, **environment)
    for before, after in zip(first, second, strict=True):
        assert (before["error"], after["error"]) == (None, None)
        assert after["resumed_at"] == 4
        yield before, after


@pytest.mark.parametrize(
    "num_ranks", [1, pytest.param(2, marks=pytest.mark.skipif(NUM_GPUS < 2, reason="needs two GPUs"))]
)
@pytest.mark.parametrize("offload", ["none", "optimizer"])
def test_a_deterministic_run_on_gpus_goes_on_bit_for_bit(tmp_path, offload, num_ranks):
    train = {"offload": offload, "deterministic": True}
    for before, after in resumed(tmp_path, num_ranks, train, **DETERMINISTIC):
        assert before["is_lent"] == (offload == "optimizer")
        assert after["losses"] == {step: loss for step, loss in before["losses"].items() if int(step) > 4}


def test_any_run_on_a_gpu_goes_on_with_the_same_data_and_state(tmp_path):
    for before, after in resumed(tmp_path, max(1, min(NUM_GPUS, 2)), {}):
        for step, loss in after["losses"].items():
            assert float.fromhex(loss) == pytest.approx(float.fromhex(before["losses"][step]), rel=1e-2)
