"""Watched: one run as it is followed. Reads only what is new; keeps what is known while its backend does not answer.

Knows no terminal. Starts and stops nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from launcher.backends.base import BEGINNING, Backend, get_backend
from launcher.follow.history import History
from launcher.follow.readers import JsonLines, read_outcome
from launcher.follow.run_view import RunView
from launcher.follow.status import Observation, status_of
from launcher.runs import ledger
from launcher.runs.errors import BackendError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import is_over
from trainer.run.run_folder import EVENTS_FILE, METRICS_FILE, SAMPLES_FILE

_LOG_LINES = 400
_RECENT_METRICS = 100


@dataclass(slots=True)
class Watched:
    record: RunRecord
    clock: Callable[[], float] = time.time
    history: History = field(default_factory=History)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Of the newest step that has some."""
    seen: Observation | None = None
    """None before the backend answered once."""
    seen_at: float | None = None
    lost: str = ""
    """Why the backend does not answer now; empty where it does."""
    version: int = 0
    """Grows with everything that is new to see."""
    _view: RunView = field(default_factory=RunView)
    _readers: tuple[JsonLines, JsonLines, JsonLines] | None = None
    _cursor: str = BEGINNING

    def look(self) -> None:
        """Ask the backend once. An answer that does not come is told by `lost`, and what was known stays."""
        try:
            backend = get_backend(self.record.backend)
            self.record = ledger.load(self.record.folder)
            status = status_of(backend, self.record)
            self._read(backend)
            self.seen = Observation(self.record, status, self._view, read_outcome(backend, self.record))
        except (BackendError, OSError) as error:
            self.version += not self.lost
            self.lost = str(error)
            return
        self.seen_at, self.lost = self.clock(), ""
        self.version += 1

    @property
    def is_over(self) -> bool:
        return self.seen is not None and is_over(self.seen.status.state)

    def _read(self, backend: Backend) -> None:
        if self._readers is None:
            names = (EVENTS_FILE, METRICS_FILE, SAMPLES_FILE)
            events_of, metrics_of, samples_of = (JsonLines(backend, self.record, name) for name in names)
            self._readers = (events_of, metrics_of, samples_of)
        events, metrics, samples = (reader.read() for reader in self._readers)
        self.history.add_events(events)
        self.history.add_metrics(metrics)
        self.history.settle()
        for event in events:
            self._view.add_event(event)
        for line in metrics[-_RECENT_METRICS:]:
            self._view.add_metric(line)
        if samples:
            newest = samples[-1].get("step")
            self.samples = [sample for sample in samples if sample.get("step") == newest]
        for chunk in backend.logs(self.record, self._cursor):
            self.log.extend(chunk.text.splitlines())
            self._cursor = chunk.cursor
