"""A scan in a process of its own: its memory, and a SIGKILL in the middle of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(600, 400).bfloat16() for i in range(12)}
    tensors["model.embed_tokens.weight"] = torch.randn(80_000, 400).bfloat16()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_scan_needs_less_than_three_times_the_largest_matrix(model: Path, tmp_path: Path) -> None:
    script = (
        "import resource, sys, torch\n"
        "from trainer.model import spectrum\n"
        "torch.linalg.eigvalsh(torch.eye(8, dtype=torch.float64))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"spectrum.main([{str(model)!r}, '--out', {str(tmp_path / 'snr.json')!r}])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENV, capture_output=True, text=True, check=True, timeout=300
    )
    extra_bytes = int(done.stdout.split()[-1]) * 1024
    assert extra_bytes < 3 * 80_000 * 400 * 2
    assert len(json.loads((tmp_path / "snr.json").read_text())) == 13


def test_a_scan_killed_in_the_middle_goes_on(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "snr.json"
    command = [
        sys.executable,
        "-m",
        "trainer.model.spectrum",
        str(model),
        "--out",
        str(out),
        "--batch",
        "1",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / "snr.json.partial"
    deadline = time.monotonic() + 240
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    if out.exists():
        pytest.skip("the scan was through before it could be killed")
    kept = json.loads(partial.read_text())["snr"]
    assert kept
    record = json.loads(partial.read_text())
    record["snr"] = dict.fromkeys(kept, 0.125)  # a mark: these are not measured again
    partial.write_text(json.dumps(record))
    subprocess.run(command, env=ENV, check=True, capture_output=True, timeout=300)
    result = json.loads(out.read_text())
    assert len(result) == 13
    assert {name for name, entry in result.items() if entry["snr"] == 0.125} == set(kept)
