"""The command that measures on rented GPUs must run to its end: here scaled, on CPU ranks, by the real supervisor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.tiny_job import TIMEOUT_S, environment

ROOT = Path(__file__).parents[2]


def bench(folder: Path, *more: str) -> str:
    command = [
        sys.executable, "-m", "bench.gpu", "--scaled", "--warmup", "1", "--steps", "2", "--work", str(folder), "--cells",
        "varlen,reference", *more,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_cell_that_fails_costs_no_other_and_what_is_done_is_not_run_again(tmp_path: Path) -> None:
    bench(tmp_path, "--budget-minutes", "0")
    assert not (tmp_path / "gpu.jsonl").exists()
    said = bench(tmp_path)
    assert "step 3/3" in said
    failed, done = (json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines())
    assert (failed["cell"], failed["state"], done["cell"], done["state"]) == ("varlen", "failed", "reference", "done")
    assert "flash attention needs a GPU" in failed["reason"]
    assert len(done["losses"]) == 3
    assert done["rss_bytes"] > 100e6
    assert done["step_s"] > 0 < done["plan"]["allocated_bytes"]
    assert list((tmp_path / "scaled" / "runs").glob("*/checkpoints")) == []
    again = bench(tmp_path)
    assert "step 3/3" not in again
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == 2
    assert "| reference (ZeRO-0) |" in (tmp_path / "gpu.md").read_text()
