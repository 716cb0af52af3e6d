"""RunFacts: all that the page says of one run, read through its backend. Starts nothing; knows nothing of HTML.

Every file is optional: a run that waits in a queue has none of them, one that failed lacks its end, one of an older trainer lacks
what that did not write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from launcher.backends.base import get_backend
from launcher.config.yaml_lines import read_yaml
from launcher.follow.history import History, Interruption
from launcher.follow.readers import HistoryReader, read_object, read_outcome
from launcher.follow.status import Observation, status_of
from launcher.runs.ledger import PLAN_FILE, RunRecord
from trainer.run.run_folder import DATA_REPORT_FILE, JOB_FILE, MODEL_FOLDER

RESULTS_FILE = f"{MODEL_FOLDER}/results.json"


@dataclass(frozen=True, slots=True)
class RunFacts:
    seen: Observation
    history: History
    interruptions: list[Interruption]
    job_text: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    data_report: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> RunRecord:
        return self.seen.record

    @property
    def settings(self) -> dict[str, Any]:
        """The job's settings, a dotted key each; empty where its text cannot be read."""
        return flat(read_yaml(self.job_text).data)


def facts_of(record: RunRecord) -> RunFacts:
    """BackendError where the backend cannot be asked."""
    backend = get_backend(record.backend)
    reader = HistoryReader(backend, record)
    reader.read()
    history = reader.history
    seen = Observation(record, status_of(backend, record), reader.view, read_outcome(backend, record))
    job = backend.read_file(record, JOB_FILE) or b""
    return RunFacts(
        seen,
        history,
        history.interruptions(seen.status.attempts),
        job.decode(errors="replace"),
        read_object(backend, record, PLAN_FILE),
        read_object(backend, record, DATA_REPORT_FILE),
        reader.samples,
        read_object(backend, record, RESULTS_FILE),
    )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """`{"train.epochs": 3}` of `{"train": {"epochs": 3}}`; a list is one value."""
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
