"""Reading: how what a run's node writes comes into the run's folder at home.

Through the job's log (`log.feed`, `log.mirror`) and, where the store can be reached from here, from the store itself
(`reach`). Owns when each is asked. Imports no sky.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

from launcher.backends.base import LogChunk
from launcher.backends.sky.log.feed import Feed
from launcher.backends.sky.log.mirror import Mirror
from launcher.backends.sky.records import reach_of, run_dir_of
from launcher.runs.errors import BackendError
from launcher.runs.ledger import RunRecord

BEFORE_A_LOG = {"PENDING", "SUBMITTED", "STARTING", "RECOVERING", "INIT", "SETTING_UP"}
"""SkyPilot would hold the reading back until there is a node."""

BUCKET_S = 10.0
"""A bucket is asked so often at most, where there is no log to follow."""

JobOf = Callable[[RunRecord], Any]
"""SkyPilot's record of the run; None where there is none."""
PrintLogOf = Callable[[RunRecord, Any, bool, io.TextIOBase], None]
"""(record, job, follow, stream): write the job's log to the stream, to its present end or, with `follow`, to its last."""


class Reading:
    """Of all runs that one launcher looks at."""

    def __init__(self, job_of: JobOf, tail: PrintLogOf) -> None:
        self._job_of, self._tail = job_of, tail
        self._feeds: dict[str, Feed] = {}
        self._complete: set[str] = set()
        self._read_at: dict[str, float] = {}
        self._jobs: dict[str, Any] = {}

    def heard(self, run_id: str, job: Any) -> None:
        """SkyPilot's last record of a run. Asking for one takes seconds on a controller of its own, so none is asked for twice."""
        self._jobs[run_id] = job

    def follow(self, record: RunRecord) -> None:
        """Bring home what is new; the first time what there is, then by holding a connection open."""
        feed = self._feed(record)
        if record.run_id in self._complete:
            return
        if feed is None:
            self.refresh(record, BUCKET_S)
            return
        if record.run_id not in self._read_at and self._may_have_log(record):
            self.refresh(record, 0.0)
        else:
            feed.follow()
            feed.take(wait_s=1.0)

    def lines(self, record: RunRecord, offset: int) -> Iterator[LogChunk]:
        """The log at home from `offset` bytes on, each line with the time at which the node wrote it."""
        times = Mirror(record.folder).times()
        try:
            with open(record.files.log, "rb") as log:
                log.seek(offset)
                data = log.read()
        except FileNotFoundError:
            return
        at, index = None, 0
        for line in io.BytesIO(data) if times else [data] if data else []:  # a carriage return ends no line
            while index < len(times) and times[index][0] <= offset:
                at, index = times[index][1], index + 1
            offset += len(line)
            yield LogChunk(line.decode(errors="replace"), str(offset), at)

    def refresh(self, record: RunRecord, at_most_every_s: float) -> None:
        """Bring the files at home up to now: from the followed log, else by reading it once in a while."""
        if record.run_id in self._complete:
            return
        feed = self._feed(record)
        if feed is not None and feed.is_following:
            feed.take()
        elif time.monotonic() - self._read_at.get(record.run_id, -1e9) < at_most_every_s:
            return
        elif feed is None:  # SkyPilot knows no job, and the store may know the run
            self._read_at[record.run_id] = time.monotonic()
            self._from_store(record)
        elif self._from_store(record, is_live=True):
            self._read_at[record.run_id] = time.monotonic()
        elif self._may_have_log(record):
            self._read_at[record.run_id] = time.monotonic()
            try:
                feed.read_once()
            except BackendError:
                self._from_store(record)

    def complete(self, record: RunRecord) -> None:
        """The last reading of a run that is over, with what the log could not carry any more."""
        if record.run_id in self._complete:
            return
        feed = self._feed(record)
        if feed is not None:
            feed.stop()
            feed.take()
            if not self._from_store(record, is_live=True):
                self._from_store(
                    record
                )  # a bucket may lack the last half minute, and the log what came before it was read
                with contextlib.suppress(BackendError):
                    feed.read_once()
        self._complete.add(record.run_id)
        self._read_at.setdefault(record.run_id, time.monotonic())

    def _may_have_log(self, record: RunRecord) -> bool:
        job = self._jobs.get(record.run_id)
        return job is None or job.status not in BEFORE_A_LOG

    def _feed(self, record: RunRecord) -> Feed | None:
        """The run's log; None while there is no job to ask."""
        if record.run_id not in self._feeds:
            job = self._jobs.get(record.run_id) or self._job_of(record)
            if job is None:
                return None

            def tail(follow: bool, stream: io.TextIOBase) -> None:
                self._tail(record, job, follow, stream)

            self._feeds[record.run_id] = Feed(tail, Mirror(record.folder))
        return self._feeds[record.run_id]

    def _from_store(self, record: RunRecord, *, is_live: bool = False) -> bool:
        """Take the run folder's lines from the store itself, where it can be reached: quicker than through the log, and
        whole for a run that was cancelled. Whether it was there; with `is_live` only where it is not behind."""
        there, run_dir = reach_of(record), run_dir_of(record)
        if there is None or run_dir is None or (is_live and not there.is_live):
            return False
        try:
            return Mirror(record.folder).take_files(lambda name: there.read(f"{run_dir}/{name}")) is not None
        except BackendError:
            return False
