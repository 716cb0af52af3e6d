"""Starts tests.support.checkpoint_worker on phases of runs and reads what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 900


def do_phases(
    root: Path, phases: list[tuple[int, list[dict[str, Any]]]], **environment: str
) -> list[list[dict[str, Any]]]:
    """(ranks, runs) one after the other; the results in the same order."""
    plan = root / f"plan-{len(list(root.glob('plan-*.json')))}.json"
    for i, (_, runs) in enumerate(phases):
        for j, run in enumerate(runs):
            run["out"] = str(plan.with_suffix(f".{i}.{j}.out"))
    plan.write_text(json.dumps([{"nproc": nproc, "runs": runs} for nproc, runs in phases]))
    bin_dir = str(Path(sys.executable).parent)
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::FutureWarning", "DS_ACCELERATOR": "cpu",
        "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}", **environment,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.checkpoint_worker", str(plan)],
        env=env, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    (root / f"{plan.stem}.log").write_text(done.stdout)
    return [[json.loads(Path(run["out"]).read_text()) for run in runs] for _, runs in phases]
