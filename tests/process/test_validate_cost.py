"""`dolphin validate` is run at every change of a file: it must stay cheap, and must never wake the training stack."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "examples" / "dolphin-2.9.4-llama3.1-8b.yaml"
LIMIT_CPU_S = 0.5
LIMIT_IN_BARE_STARTS = 14
"""Processor time, too, grows on a busy machine: there, this many times what a bare Python takes beside it."""
ATTEMPTS = 8
"""The least of these counts."""

_RUN = """
import sys
sys.argv = ["dolphin", "validate", sys.argv[1]]
from launcher.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def cpu_s(command: list[str]) -> tuple[float, str]:
    """Processor seconds of a command that must succeed, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_validating_the_reference_job_takes_less_than_half_a_cpu_second() -> None:
    least, limit = float("inf"), LIMIT_CPU_S
    for _ in range(ATTEMPTS):
        limit = max(limit, LIMIT_IN_BARE_STARTS * cpu_s([sys.executable, "-c", "pass"])[0])
        taken, printed = cpu_s([sys.executable, "-c", _RUN, str(REFERENCE)])
        least = min(least, taken)
        if least < LIMIT_CPU_S:
            break
    assert least < limit
    heavy = {"torch", "transformers", "numpy", "datasets", "deepspeed", "sky", "rich", "tokenizers"}
    assert not heavy & set(printed.split())
