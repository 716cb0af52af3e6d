"""HomeBackend: what the backends share whose runs work in the ledger's own folder, as processes or in a container.

Owns what this machine offers and reading that folder: its log, its files, its outcome, copies of what it holds. Refuses
to know what runs there.
"""

from __future__ import annotations

import codecs
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.backends.base import BEGINNING, BackendStatus, Cursor, Fetchable, LogChunk, Offer
from launcher.backends.home import machine
from launcher.runs import ledger
from launcher.runs.copying import copy_folder
from launcher.runs.errors import BackendError, BadUsage
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState, is_over, state_of_exit_code, told_after_down
from launcher.units import GIB
from trainer.run.limits import limits_in
from trainer.run.paid import paid

if TYPE_CHECKING:
    from launcher.jobfile.settle import Placement
    from launcher.jobfile.spec import JobSpec

_CHUNK_BYTES = 1 << 18
_LONGEST_LINE_BYTES = 1 << 24
"""A line that is longer is told in pieces."""
_LAST_WORDS = 300
"""Characters of a log's last line that are shown."""

Look = tuple[RunState, str, int | None]
"""A run's state, one line about it, and the trainer's exit code where it ended."""


def read_from(path: Path, offset: int) -> bytes | None:
    """What a file holds from `offset` on; None where there is no such file."""
    try:
        with open(path, "rb") as handle:
            handle.seek(offset)
            return handle.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _end_of_letters(block: bytes) -> int:
    """The length of `block` without a letter of which UTF-8 only begins at its end; all of it where that is nothing else."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(block)
    return (len(block) - len(decoder.getstate()[0])) or len(block)


class HomeBackend(ABC):
    """Satisfies `offers`, `place`, `status`, `logs`, `read_file` and `fetch` of `launcher.backends.base.Backend`."""

    name: str

    def offers(self, job: JobSpec, nproc: int | None) -> list[Offer]:
        gpus = machine.local_gpus()
        count = nproc or machine.default_ranks(job, len(gpus))
        name, memory_mib = gpus[0] if gpus else (None, None)
        return [Offer(self.name, self.name, name, count, accelerator_memory_mib=memory_mib,
                      host_memory_gib=machine.memory_bytes() / GIB,
                      price_usd_per_hour=job.resources.price_per_hour or 0.0)]  # fmt: skip

    def place(self, job: JobSpec, run_id: str, folder: Path, nproc: int | None) -> Placement:
        from launcher.jobfile.settle import Placement  # with pydantic, which reading a log does without

        if machine.VISIBLE in job.env:
            raise BadUsage(
                f"env.{machine.VISIBLE}: GPUs of this machine are chosen where it is launched, so that they are counted as the run "
                f"sees them: {machine.VISIBLE}={job.env[machine.VISIBLE]} dolphin launch ...; remove it from env"
            )
        gpus = machine.local_gpus()
        if gpus and nproc is not None and nproc > len(gpus):
            raise BadUsage(f"--nproc {nproc}: this machine has {len(gpus)} GPUs; ask for at most that many")
        count = nproc or machine.default_ranks(job, len(gpus))
        return Placement(str(folder), str(ledger.cache_dir()), count, "cuda" if gpus else "cpu")

    def status(self, record: RunRecord) -> BackendStatus:
        state, detail, exit_code = self.look(record)
        if record.down_requested_at is not None:
            state, detail = told_after_down(state, detail)
        limits = limits_in(record.files.train_json)
        price = limits.price_usd_per_hour or 0.0
        spent = paid(record.files, limits, None if is_over(state) else time.time()).usd if price else 0.0
        return BackendStatus(
            state, detail, exit_code, node=platform.node(), price_usd_per_hour=price, price_usd_so_far=spent
        )

    @abstractmethod
    def look(self, record: RunRecord) -> Look:
        """What the run is now, whether or not somebody asked it to stop."""

    def logs(self, record: RunRecord, after: Cursor = BEGINNING) -> Iterator[LogChunk]:
        offset = int(after or 0)
        is_dead = is_over(self.status(record).state)  # asked before reading: what comes after is read next time
        try:
            with open(record.files.log, "rb") as log:
                log.seek(offset)
                while block := log.read(_CHUNK_BYTES):
                    while b"\n" not in block and len(block) < _LONGEST_LINE_BYTES and (more := log.read(_CHUNK_BYTES)):
                        block += more
                    end = block.rfind(b"\n") + 1
                    if end == 0 and (is_dead or len(block) >= _LONGEST_LINE_BYTES):
                        end = _end_of_letters(block)
                    if end == 0:
                        return
                    offset += end
                    log.seek(offset)
                    yield LogChunk(block[:end].decode(errors="replace"), str(offset))
        except FileNotFoundError:
            return

    def read_file(self, record: RunRecord, name: str, offset: int = 0) -> bytes | None:
        return read_from(record.folder / name, offset)

    def fetch(self, record: RunRecord, what: Fetchable, target: Path) -> Path:
        files = record.files
        if what == "log":
            source = files.log
        elif what == "checkpoints":
            source = files.checkpoints
        else:
            outcome = record.files.read_outcome()
            if outcome is None or (outcome.get("state") != "done" and not outcome.get("model")):
                state = self.status(record).state
                raise BackendError(
                    f"{record.run_id}: has no finished model (it is {state.value}); --what checkpoints copies what there is"
                )
            source = Path(outcome.get("model") or files.model)
        if not source.exists():
            raise BackendError(f"{record.run_id}: has no {what} at {source}; nothing was copied")
        return copy_folder(source, target)


def as_told(outcome: dict[str, Any]) -> Look:
    """How the run ended, in the trainer's own words."""
    exit_code = outcome.get("exit_code")
    return state_of_exit_code(exit_code), str(outcome.get("reason") or ""), exit_code


def last_words(record: RunRecord) -> str:
    """The last line of the log that says something; empty where there is none."""
    try:
        with open(record.files.log, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:_LAST_WORDS] for line in reversed(lines) if line.strip()), "")
