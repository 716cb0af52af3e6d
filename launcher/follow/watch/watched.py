"""Watched: one run as it is followed. Reads only what is new; keeps what is known while its backend does not answer.

Knows no terminal. Starts and stops nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from launcher.backends.base import BEGINNING, get_backend
from launcher.follow.history import History
from launcher.follow.readers import HistoryReader, read_outcome
from launcher.follow.status import Observation, status_of
from launcher.runs import ledger
from launcher.runs.errors import BackendError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import is_over

_LOG_LINES = 400


@dataclass(slots=True)
class Watched:
    record: RunRecord
    clock: Callable[[], float] = time.time
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))
    seen: Observation | None = None
    """None before the backend answered once."""
    seen_at: float | None = None
    lost: str = ""
    """Why the backend does not answer now; empty where it does."""
    version: int = 0
    """Grows with everything that is new to see."""
    _reader: HistoryReader | None = None
    _cursor: str = BEGINNING

    def look(self) -> None:
        """Ask the backend once. An answer that does not come is told by `lost`, and what was known stays."""
        try:
            backend = get_backend(self.record.backend)
            self.record = ledger.load(self.record.folder)
            status = status_of(backend, self.record)
            self._reader = self._reader or HistoryReader(backend, self.record)
            self._reader.read()
            for chunk in backend.logs(self.record, self._cursor):
                self.log.extend(chunk.text.splitlines())
                self._cursor = chunk.cursor
            self.seen = Observation(self.record, status, self._reader.view, read_outcome(backend, self.record))
        except (BackendError, OSError) as error:
            self.version += not self.lost
            self.lost = str(error)
            return
        self.seen_at, self.lost = self.clock(), ""
        self.version += 1

    @property
    def is_over(self) -> bool:
        return self.seen is not None and is_over(self.seen.status.state)

    @property
    def history(self) -> History:
        return History() if self._reader is None else self._reader.history

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Of the newest step that has some."""
        known = [] if self._reader is None else self._reader.samples
        return [sample for sample in known if sample.get("step") == known[-1].get("step")]
