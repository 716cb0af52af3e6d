"""A run's job in SkyPilot: found by its name, which is the run id, and never started twice. Imports no sky."""

from __future__ import annotations

import contextlib
from typing import Any

from launcher.backends.base import Handle
from launcher.backends.sky import status as sky_status
from launcher.runs import ledger
from launcher.runs.errors import BackendError, BadUsage, LauncherError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import is_over


class Jobs:
    """Of one client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def find(self, run_id: str) -> Handle | None:
        for job in self._client.jobs(run_id, active_only=True):
            if job.name == run_id:
                return {"kind": "managed", "job_id": job.job_id}
        cluster = _cluster_option(run_id)
        for job in (self._client.cluster_jobs(cluster) or []) if cluster else []:
            if job.name == run_id and not is_over(sky_status.cluster_job_state(job.status)):
                return {"kind": "cluster", "cluster": cluster, "job_id": job.job_id}
        if self._client.pending_launch(run_id):
            return {"kind": "cluster" if cluster else "managed", "cluster": cluster, "job_id": None}
        return None

    def refuse_twins(self, record: RunRecord) -> None:
        """Never two of the same run, nor two of the same job by mistake."""
        if self.find(record.run_id) is not None:
            raise BackendError(f"{record.run_id}: is active already; `dolphin logs {record.run_id}` follows it")
        self.refuse_namesakes(record.name)

    def refuse_namesakes(self, name: str) -> None:
        """Names compare whole."""
        for job in self._client.jobs(ledger.name_in_id(name), active_only=True):
            if ledger.is_id_of(job.name, name):
                raise BadUsage(
                    f"{name}: a job of this name is {job.status.lower()} already ({job.name}); `dolphin logs {job.name}` "
                    "follows it; for one more, set another `name`"
                )

    def of(self, record: RunRecord) -> Any:
        """SkyPilot's record of the run; None where there is none."""
        handle = record.handle or {}
        if kind_of(record) == "managed":
            jobs = [job for job in self._client.jobs(record.run_id, active_only=False) if job.name == record.run_id]
        else:
            cluster = handle.get("cluster") or record.options.get("cluster")
            jobs = [job for job in self._client.cluster_jobs(cluster) or [] if job.name == record.run_id]
        wanted = handle.get("job_id")
        return next((job for job in jobs if wanted is None or job.job_id == wanted), None)


def kind_of(record: RunRecord) -> str:
    return (record.handle or {}).get("kind") or ("cluster" if record.options.get("cluster") else "managed")


def _cluster_option(run_id: str) -> str | None:
    with contextlib.suppress(LauncherError):
        return ledger.load(ledger.folder_of(run_id)).options.get("cluster")
    return None
