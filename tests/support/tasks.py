"""Small task files for lm-evaluation-harness that need no network: which of two ends a sentence has."""

from __future__ import annotations

import json
from pathlib import Path

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" sea", " land"]
doc_to_target: "{{{{answer}}}}"
metric_list:
- {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""


def write_task(folder: Path, name: str, num_questions: int = 6) -> Path:
    """A task file with its data beside it, named as it lies there."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as out:
        for number in range(num_questions):
            out.write(json.dumps({"question": f"the dolphin swims in the {number}", "answer": number % 2}) + "\n")
    path = folder / f"{name}.yaml"
    path.write_text(TASK.format(name=name, data=f"{name}.jsonl"), encoding="utf-8")
    return path


def write_broken_task(folder: Path, name: str) -> Path:
    """One whose data is not there."""
    path = write_task(folder, name)
    (folder / f"{name}.jsonl").unlink()
    return path
