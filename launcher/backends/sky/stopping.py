"""Stopping a run on SkyPilot: asked to save first, cancelled, torn down, and looked for until nothing of it is left.

Owns the order. Refuses to say that a run is gone without having looked. Imports no sky.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from launcher.backends.base import DownReport
from launcher.backends.sky import elsewhere
from launcher.backends.sky import status as sky_status
from launcher.backends.sky.answers import ControllerLost, ControllerStopped
from launcher.backends.sky.jobs import Jobs, kind_of
from launcher.backends.sky.reach import InBucket
from launcher.backends.sky.records import hourly_price, last_step, node_attempts, reach_of, run_dir_of, saved_at
from launcher.runs.errors import BackendError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState, is_over
from trainer.run.run_folder import SAVE_FILE

_SAVED_AGAIN_S = 2.0
_DOWN_TIMEOUT_S = 420.0
_LATE_LOOKS = 6
_CANCELS = 3
_KEPT_OF_NAME = 20
"""Letters of a job's name in the name of its cluster, at least."""


class Stopping:
    def __init__(self, client: Any, jobs: Jobs, poll_s: float) -> None:
        self._client, self._jobs, self._poll_s = client, jobs, poll_s

    def down(self, record: RunRecord, grace_s: float) -> DownReport:
        was_withdrawn = self._withdraw(record)
        job = self._jobs.of(record)
        for _ in range(_LATE_LOOKS if was_withdrawn else 0):  # what the request had started may show a little later
            if job is not None:
                break
            time.sleep(self._poll_s)
            job = self._jobs.of(record)
        there, run_dir = reach_of(record), run_dir_of(record)
        if job is None and run_dir and isinstance(there, InBucket) and elsewhere.holder(there):
            return elsewhere.stop(there, run_dir, grace_s)
        if job is None:
            detail = "its submit was withdrawn" if was_withdrawn else "nothing of it was running"
            cluster = record.options.get("cluster")
            if was_withdrawn and cluster and self._is_there(cluster) and not self._others_on(cluster, record.run_id):
                self._client.down_cluster(cluster)
                detail += f"; cluster {cluster} is down"
            left = self._left(record, None)
            return DownReport(not left, tuple(left), detail, price_usd=None)
        is_managed = kind_of(record) == "managed"
        table = sky_status.MANAGED_JOB_STATES if is_managed else sky_status.CLUSTER_JOB_STATES
        detail, was_killed = "nothing of it was running", False
        if not is_over(table.get(job.status, RunState.RUNNING)):
            was_saved = self._save_first(record, job, grace_s)
            was_killed = not was_saved and bool(last_step(record))
            if is_managed:
                job = self._cancel(record, job, table) or job
            else:
                self._client.cancel_cluster_job(job.cluster, job.job_id)
            detail = f"cancelled{', its progress saved first' if was_saved else ''}"
        if not is_managed and not self._others_on(job.cluster, record.run_id):
            self._client.down_cluster(job.cluster)
            detail += f"; cluster {job.cluster} is down"
        left = self._wait_until_gone(record, job, table)
        now = time.time()
        job = self._jobs.of(record) or job
        attempts = node_attempts(record, job, RunState.CANCELLED, now, hourly_price(record, job))
        price = sky_status.price_of(attempts, now)
        return DownReport(not left, tuple(left), detail, was_killed, price)

    def _cancel(self, record: RunRecord, job: Any, table: Mapping[str, RunState]) -> Any:
        """Again where the controller broke off or stopped itself just then: it is woken and asked. The job as it was then; None
        where SkyPilot knows none any more."""
        for _ in range(_CANCELS):
            try:
                self._client.cancel_managed(job.job_id)
                return job
            except (ControllerLost, ControllerStopped) as problem:
                said = problem
            time.sleep(self._poll_s)
            now = self._jobs.of(record)
            if now is None or is_over(table.get(now.status, RunState.RUNNING)):
                return now
            job = now
        raise said

    def _save_first(self, record: RunRecord, job: Any, grace_s: float) -> bool:
        """Ask the trainer for a save and wait for it, where the store can be reached; True once it is done.

        SkyPilot's own signal is no promise: on Slurm about half of the cancels send none."""
        run_dir, there = run_dir_of(record), reach_of(record)
        if grace_s <= 0 or there is None or run_dir is None or not last_step(record):
            return False
        before, deadline = saved_at(there, run_dir), time.monotonic() + grace_s
        with contextlib.suppress(BackendError):
            there.touch(f"{run_dir}/{SAVE_FILE}")
            while time.monotonic() < deadline:
                time.sleep(_SAVED_AGAIN_S)
                if saved_at(there, run_dir) > before:
                    return True
        return False

    def _withdraw(self, record: RunRecord) -> bool:
        """Cancel the request that is starting the run at this moment, until none is; whether there was one."""
        deadline, was_there = time.monotonic() + _DOWN_TIMEOUT_S, False
        while (request := self._client.pending_launch(record.run_id)) and time.monotonic() < deadline:
            was_there = True
            self._client.cancel_request(request)
            time.sleep(self._poll_s)
        return was_there

    def _is_there(self, cluster: str) -> bool:
        return any(one.name == cluster for one in self._client.clusters())

    def _others_on(self, cluster: str, run_id: str) -> list[str]:
        """Active jobs of other runs on a cluster."""
        return [
            job.name for job in self._client.cluster_jobs(cluster) or []
            if job.name != run_id and not is_over(sky_status.cluster_job_state(job.status))
        ]  # fmt: skip

    def _wait_until_gone(self, record: RunRecord, job: Any, table: dict[str, RunState]) -> list[str]:
        deadline = time.monotonic() + _DOWN_TIMEOUT_S
        while True:
            now = self._jobs.of(record)
            is_ended = now is None or (is_over(table.get(now.status, RunState.RUNNING)) and now.is_cleaned_up)
            left = (
                self._left(record, job)
                if is_ended
                else [f"managed job {job.job_id} is {now.status}: `sky jobs cancel {job.job_id}`"]
            )
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(self._poll_s)

    def _left(self, record: RunRecord, job: Any) -> list[str]:
        """What SkyPilot still has of this run, each with how to remove it: the request that starts it, its clusters."""
        request = self._client.pending_launch(record.run_id)
        if request:
            return [f"request {request} is still starting it: `sky api cancel {request}`"]
        kept = self._others_on(job.cluster, record.run_id) if job is not None and kind_of(record) == "cluster" else []
        names = {cluster.name: cluster.status for cluster in self._client.clusters()}
        mine = [
            name for name in names if job is not None and (name == job.cluster or _is_cluster_of(name, record, job))
        ]
        if kept:
            return []
        return [f"cluster {name} is {names[name]}: `sky down {name}`" for name in mine]


def _is_cluster_of(name: str, record: RunRecord, job: Any) -> bool:
    """Whether SkyPilot named a cluster so for this managed job: of a long name it takes the beginning and a hash."""
    begins = record.run_id[:_KEPT_OF_NAME]
    return kind_of(record) == "managed" and name.startswith(begins) and name.endswith(f"-{job.job_id}")
