"""A run's job in SkyPilot: found by its name, which is the run id, and never started twice. Imports no sky."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from launcher.backends.base import Handle
from launcher.backends.sky import status as sky_status
from launcher.backends.sky.answers import ControllerAway, ControllerLost, ControllerStopped
from launcher.runs import ledger
from launcher.runs.errors import BackendError, BadUsage, LauncherError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import is_over
from trainer.run.exits import ExitCode

AGAIN_S = (5.0, 15.0, 30.0)
"""Pauses before a controller that broke off is asked again."""


class Jobs:
    """Of one client."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def find(self, run_id: str, *, wake: bool = False) -> Handle | None:
        """The active run of this id. A controller that has stopped had nothing active unless somebody stopped it over a run:
        ControllerStopped, or it is woken and asked."""
        if not self._stated_cluster(run_id):
            for job in self._active(run_id, wake, part=run_id):
                if job.name == run_id:
                    return {"kind": "managed", "job_id": job.job_id}
        return self._elsewhere(run_id)

    def _elsewhere(self, run_id: str) -> Handle | None:
        """The active run on a cluster of the user's, or in a request that is starting it."""
        cluster = self._stated_cluster(run_id)
        clusters = [cluster] if cluster else []
        if cluster is None:  # any of the user's where no record says
            clusters = [found.name for found in self._client.clusters()]
        for each in clusters:
            for job in self._client.cluster_jobs(each) or []:
                if job.name == run_id and not is_over(sky_status.cluster_job_state(job.status)):
                    return {"kind": "cluster", "cluster": each, "job_id": job.job_id}
        if self._client.pending_launch(run_id):
            own = clusters[0] if len(clusters) == 1 else None
            return {"kind": "cluster" if own else "managed", "cluster": own, "job_id": None}
        return None

    def _stated_cluster(self, run_id: str) -> str | None:
        """The cluster of its launch; empty where it is a managed job, None where there is no record."""
        try:
            return ledger.load(ledger.folder_of(run_id)).options.get("cluster") or ""
        except LauncherError:
            return None

    def refuse_twins(self, record: RunRecord) -> None:
        """Never two of the same run, nor two of the same job by mistake. SkyPilot's controller, which takes half a minute to
        answer, is asked once."""
        was_sent = record.handle is not None or record.submissions > 1 or (record.folder / ledger.REQUEST_FILE).exists()
        if was_sent and not record.options.get("cluster"):
            jobs = self._active(record.run_id, wake=True, part=ledger.name_in_id(record.name))
        else:
            jobs = self._awake(record.name)
        is_active = was_sent and any(job.name == record.run_id for job in jobs)
        if is_active or (was_sent and self._elsewhere(record.run_id) is not None):
            raise BackendError(f"{record.run_id}: is active already; `dolphin logs {record.run_id}` follows it")
        _refuse_names(record.name, jobs)

    def refuse_namesakes(self, name: str) -> None:
        """Names compare whole. A controller that has stopped itself had nothing active, and is left asleep."""
        _refuse_names(name, self._awake(name))

    def _awake(self, name: str) -> list[Any]:
        try:
            return self._ask(ledger.name_in_id(name), active_only=True)
        except ControllerStopped:
            return []

    def of(self, record: RunRecord) -> Any:
        """SkyPilot's record of the run; None where there is none, or where the trainer's last word is here and the controller
        would have to be woken for more. BackendError where that is not known."""
        handle = record.handle or {}
        if kind_of(record) == "managed":
            jobs = [job for job in self._all(record) if job.name == record.run_id]
        else:
            cluster = handle.get("cluster") or record.options.get("cluster")
            jobs = [job for job in self._client.cluster_jobs(cluster) or [] if job.name == record.run_id]
        wanted = handle.get("job_id")
        return next((job for job in jobs if wanted is None or job.job_id == wanted), None)

    def _ask(self, part: str, *, active_only: bool, wake: bool = False) -> list[Any]:
        """Again where the controller broke off, which one does that stops itself just then: at the next question it has."""
        for pause_s in AGAIN_S:
            try:
                return list(self._client.jobs(part, active_only=active_only, **({"wake": True} if wake else {})))
            except ControllerLost:
                time.sleep(pause_s)
        return list(self._client.jobs(part, active_only=active_only, **({"wake": True} if wake else {})))

    def _all(self, record: RunRecord) -> list[Any]:
        try:
            found = self._ask(record.run_id, active_only=False)
        except (ControllerStopped, ControllerAway) as problem:
            if self._client.pending_launch(record.run_id):
                return []  # it is being made, or woken, for this very run
            if isinstance(problem, ControllerAway):
                raise
            return [] if has_ended(record) else self._ask(record.run_id, active_only=False, wake=True)
        return found

    def _active(self, run_id: str, wake: bool, part: str) -> list[Any]:
        """Active jobs whose names hold the part, a part of the run's."""
        try:
            found = self._ask(part, active_only=True)
        except (ControllerStopped, ControllerAway) as problem:
            if self._client.pending_launch(run_id):
                return []
            if isinstance(problem, ControllerAway) or not wake:
                raise
            return self._ask(part, active_only=True, wake=True)
        return found


def has_ended(record: RunRecord) -> bool:
    """Whether the trainer's last word is here, and it was the last: a node that was taken away leaves one that is not."""
    code = (record.files.read_outcome() or {}).get("exit_code")
    return isinstance(code, int) and code != ExitCode.PREEMPTED


def _refuse_names(name: str, jobs: Iterable[Any]) -> None:
    for job in jobs:
        if ledger.is_id_of(job.name, name):
            raise BadUsage(
                f"{name}: a job of this name is {job.status.lower()} already ({job.name}); `dolphin logs {job.name}` "
                "follows it; for one more, set another `name`"
            )


def kind_of(record: RunRecord) -> str:
    return (record.handle or {}).get("kind") or ("cluster" if record.options.get("cluster") else "managed")
