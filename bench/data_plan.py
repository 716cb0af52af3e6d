"""Open the plan of N conversations of log-normal length and take a batch of two epochs: data_plan.py N

The tokens are a sparse file: only the plan's own time and memory are measured. Prints one JSON object; times are CPU seconds.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from trainer.data import checksums
from trainer.data.batch import Share
from trainer.data.plan import DataPlan
from trainer.data.prepared import VERSION, Prepared

SEQUENCE_LENGTH = 8192
GLOBAL_BATCH = 256


def write(folder: Path, count: int) -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    lengths = np.clip(np.exp(generator.normal(6.0, 0.9, count)), 2, SEQUENCE_LENGTH).astype(np.int64)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    arrays = {
        "offsets": offsets,
        "origin": np.stack([np.zeros(count, np.int64), np.arange(1, count + 1)], axis=1),
        "weight_sum": (lengths * 0.7).astype(np.float64),
        "trained": (lengths * 0.7).astype(np.int32),
        "train": np.arange(count),
        "validation": np.zeros(0, np.int64),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    total = int(offsets[-1])
    for name, size in (("tokens.bin", 4 * total), ("weights.bin", total)):
        with open(folder / name, "wb") as handle:
            handle.truncate(size)
    meta = {
        "version": VERSION,
        "dtype": "uint32",
        "palette": [0.0, 1.0],
        "tokens": total,
        "files": ["x"],
        "pad_token": 0,
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "report.json").write_text("{}")
    large = ["tokens.bin", "weights.bin"]
    checksums.write(folder, [path.name for path in folder.iterdir() if path.name not in large], large)


def main() -> None:
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, count)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        marks = [time.process_time()]
        data = Prepared.load(folder, "bench")
        marks.append(time.process_time())
        plan = DataPlan(data, SEQUENCE_LENGTH, True, 42, GLOBAL_BATCH, 2.0, None, 0)
        sequences = plan.num_sequences
        marks.append(time.process_time())
        plan.batch(0, Share(0, 8, 2), 0)
        marks.append(time.process_time())
        plan.batch(plan.steps_per_epoch + 3, Share(0, 8, 2), 0)
        marks.append(time.process_time())
        for index in range(16):
            plan.batch(plan.steps_per_epoch + 3, Share(0, 8, 2), index)
        warm = time.process_time()
        for index in range(16):
            plan.batch(plan.steps_per_epoch + 3, Share(0, 8, 2), index)
        batch_s = (time.process_time() - warm) / 16
        steps = [round(later - earlier, 4) for earlier, later in pairwise(marks)]
        names = ("map_s", "pack_s", "first_batch_of_epoch_0_s", "first_batch_of_epoch_1_s")
        bound = -(-int(data.offsets[-1]) // SEQUENCE_LENGTH)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            json.dumps(
                {"conversations": count, "sequences": sequences, "lower_bound": bound}
                | dict(zip(names, steps, strict=True))
                | {
                    "batch_of_2_rows_s": round(batch_s, 4),
                    "peak_mib": peak // 1024,
                    "peak_before_plan_mib": before // 1024,
                }
            )
        )


if __name__ == "__main__":
    main()
