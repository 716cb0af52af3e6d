"""Reading a run's growing files through its backend: whole JSON lines, each once. Refuses to know what they mean."""

from __future__ import annotations

import json
from typing import Any

from launcher.backends.base import Backend
from launcher.follow.history import History
from launcher.follow.run_view import RunView
from launcher.runs.ledger import RunRecord
from trainer.run.run_folder import EVENTS_FILE, METRICS_FILE, OUTCOME_FILE, SAMPLES_FILE

_RECENT_LINES = 100
"""Of metrics.jsonl: what the run does now is told by the last ones, and the evaluations."""
_MAX_BYTES = 256 << 20
"""Of one file of the run's folder: more is no record of a run."""


class JsonLines:
    """The new whole lines of one file at each `read`. A line that a killed writer tore is passed over."""

    def __init__(self, backend: Backend, record: RunRecord, name: str) -> None:
        self._backend, self._record, self._name = backend, record, name
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        data = self._backend.read_file(self._record, self._name, self._offset)
        if not data:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        return [line for line in map(_parse, data[:end].splitlines()) if line is not None]


class ViewReader:
    """Keeps a RunView up to date."""

    def __init__(self, backend: Backend, record: RunRecord) -> None:
        self.view = RunView()
        self._events = JsonLines(backend, record, EVENTS_FILE)
        self._metrics = JsonLines(backend, record, METRICS_FILE)

    def read(self) -> list[str]:
        """Take in what is new; returns the new lines of the story."""
        lines = [self.view.add_event(event) for event in self._events.read()]
        for metric in self._metrics.read():
            self.view.add_metric(metric)
        return [line for line in lines if line is not None]


def read_view(backend: Backend, record: RunRecord) -> RunView:
    reader = ViewReader(backend, record)
    reader.read()
    return reader.view


class HistoryReader:
    """Keeps a run's whole history, and what it does now, up to date. What was read is taken in before anything else is asked
    for, so that a backend that fails in between costs no line."""

    def __init__(self, backend: Backend, record: RunRecord) -> None:
        self.history, self.view = History(), RunView()
        self.samples: list[dict[str, Any]] = []
        names = (EVENTS_FILE, METRICS_FILE, SAMPLES_FILE)
        self._events, self._metrics, self._samples = (JsonLines(backend, record, name) for name in names)

    def read(self) -> None:
        """Take in what is new."""
        events = self._events.read()
        self.history.add_events(events)
        for event in events:
            self.view.add_event(event)
        metrics = self._metrics.read()
        self.history.add_metrics(metrics)
        self.history.settle()
        older, recent = metrics[:-_RECENT_LINES], metrics[-_RECENT_LINES:]
        for line in (*(line for line in older if "loss" not in line), *recent):
            self.view.add_metric(line)
        self.samples += self._samples.read()


def read_outcome(backend: Backend, record: RunRecord) -> dict[str, Any]:
    """outcome.json; empty where there is none."""
    return read_object(backend, record, OUTCOME_FILE)


def read_object(backend: Backend, record: RunRecord, name: str) -> dict[str, Any]:
    """The JSON object in a file of the run's folder; empty where there is none, and for what is too large to be a record."""
    data = backend.read_file(record, name)
    return (_parse(data) if data and len(data) <= _MAX_BYTES else None) or {}


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
