"""A node that holds the base once for every rank while it loads is out of memory before the first step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", [3])
def test_no_rank_takes_the_whole_model_while_it_loads_its_part(stage: int) -> None:
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "DS_ACCELERATOR": "cpu",
    }
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    command = [sys.executable, "bench/load.py", "3", "1024", "12", str(stage)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-3000:]
    model, *ranks = lines
    assert len(ranks) == 3
    whole = model["model_mb"]
    assert all(rank["kept_mb"] > whole / 3 for rank in ranks), "its part"
    assert all(rank["peak_mb"] < 0.75 * whole for rank in ranks), lines
    [first] = [rank for rank in ranks if rank["rank"] == 0]
    assert first["sum"] == pytest.approx(model["sum"], rel=1e-12), "the weights of the base, gathered"
