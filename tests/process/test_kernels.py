"""Fused kernels that are a little wrong train a little wrong for three days: they must give what the plain layers give."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.unit.test_tree import ROOT

needs_kernels = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("liger_kernel", "triton")),
    reason="liger-kernel and triton are not installed (pip install --no-deps liger-kernel triton)",
)


@needs_kernels
def test_fused_layers_give_the_values_and_gradients_of_plain_ones() -> None:
    """By Triton's interpreter, on a CPU: packed, a part frozen, activations recomputed; and by family."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kernel_probe"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(difference < 1e-4 for difference in found["families"].values()), found["families"]
    assert found["packed"] < 1e-4
    assert found["is_fused"], "nothing was replaced"
    assert found["same_names"], "a checkpoint knows parameters by their names"
    assert found["plain_again"], "a model that is built later must be plain"
    assert found["line"].startswith("fused kernels: on (liger-kernel ")
    assert found["no_family"] == "fused kernels: off (liger-kernel has none for a gpt2)"
