"""HomeBackend: what the backends share whose runs work in the ledger's own folder, as processes or in a container.

Owns reading that folder: its log, its files, its outcome, copies of what it holds. Refuses to know what runs there.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.backends.base import BEGINNING, BackendError, BackendStatus, Cursor, Fetchable, LogChunk
from launcher.copying import copy_folder
from launcher.ledger import RunRecord
from launcher.states import is_over

_CHUNK_BYTES = 1 << 18


class HomeBackend(ABC):
    """Satisfies `logs`, `read_file` and `fetch` of `launcher.backends.base.Backend`."""

    @abstractmethod
    def status(self, record: RunRecord) -> BackendStatus: ...

    def logs(self, record: RunRecord, after: Cursor = BEGINNING) -> Iterator[LogChunk]:
        offset = int(after or 0)
        is_dead = is_over(self.status(record).state)  # asked before reading: what comes after is read next time
        try:
            with open(record.files.log, "rb") as log:
                log.seek(offset)
                while block := log.read(_CHUNK_BYTES):
                    end = block.rfind(b"\n") + 1
                    if end == 0 and (is_dead or len(block) == _CHUNK_BYTES):
                        end = len(block)
                    if end == 0:
                        return
                    offset += end
                    log.seek(offset)
                    yield LogChunk(block[:end].decode(errors="replace"), str(offset))
        except FileNotFoundError:
            return

    def read_file(self, record: RunRecord, name: str, offset: int = 0) -> bytes | None:
        try:
            with open(record.folder / name, "rb") as handle:
                handle.seek(offset)
                return handle.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def fetch(self, record: RunRecord, what: Fetchable, target: Path) -> Path:
        files = record.files
        if what == "log":
            source = files.log
        elif what == "checkpoints":
            source = files.checkpoints
        else:
            outcome = read_outcome(record)
            if outcome is None or outcome.get("state") != "done":
                state = self.status(record).state
                raise BackendError(
                    f"{record.run_id}: has no finished model (it is {state.value}); --what checkpoints copies what there is"
                )
            source = Path(outcome.get("model") or files.model)
        if not source.exists():
            raise BackendError(f"{record.run_id}: has no {what} at {source}; nothing was copied")
        return copy_folder(source, target)


def read_outcome(record: RunRecord) -> dict[str, Any] | None:
    """What the trainer said at its end; None where it said nothing (yet)."""
    try:
        outcome = json.loads(record.files.outcome.read_bytes())
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) else None
