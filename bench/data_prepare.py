"""Prepare a sharegpt JSONL file at 8,192 tokens from an empty cache: data_prepare.py MODEL DATA.jsonl [WORKERS] [SEED]

Time it from outside (/usr/bin/time -v): CPU seconds and peak memory are those of the whole process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from trainer.data.prepare import prepare
from trainer.run.spec import NodeJob


def main() -> None:
    model, data = (str(Path(argument).resolve()) for argument in sys.argv[1:3])
    workers = int(sys.argv[3]) if len(sys.argv) > 3 else None
    with tempfile.TemporaryDirectory() as folder:
        job = NodeJob.model_validate(
            {
                "run_id": "bench", "run_dir": f"{folder}/run", "cache_dir": f"{folder}/cache", "nproc": 1, "device": "cpu",
                "spec": {
                    "name": "bench",
                    "model": {"base": model},
                    "data": {"sources": [{"path": data}], "sequence_length": 8192, "validation_fraction": 0, "workers": workers},
                    "train": {"global_batch": 256},
                },
            }
        )  # fmt: skip
        prepare(job)
        totals = json.loads((Path(folder) / "run" / "data_report.json").read_text())["totals"]
    lower_bound = -(-totals["tokens"] // totals["sequence_length"])
    print(json.dumps({**totals, "lower_bound": lower_bound}))


if __name__ == "__main__":
    main()
