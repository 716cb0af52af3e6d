"""`dolphin validate`: say what is wrong with a job file, all of it, or that nothing is. Owns the two forms of the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from launcher.config.problems import SpecErrors
from launcher.jobfile.load import load_job
from launcher.runs.states import EXIT_CODES, EndReason


def validate_command(path: str, overrides: Sequence[str] = (), as_json: bool = False) -> int:
    """Print the findings (text to standard error, JSON to standard output). Returns the exit code."""
    try:
        job = load_job(path, overrides)
    except SpecErrors as errors:
        if as_json:
            print(json.dumps({"valid": False, "problems": [p._asdict() for p in errors.problems]}, ensure_ascii=False))
        else:
            count = len(errors.problems)
            print(errors, file=sys.stderr)
            print(f"{count} {'problem' if count == 1 else 'problems'} in {path}", file=sys.stderr)
        return EXIT_CODES[EndReason.BAD_SPECIFICATION]
    if as_json:
        print(json.dumps({"valid": True, "problems": [], "name": job.name}))
    else:
        print(f"{path}: valid ({job.name})")
    return 0
