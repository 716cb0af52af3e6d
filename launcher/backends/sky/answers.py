"""SkyPilot's records as plain data: jobs, clusters, and where its jobs controller is. Imports no sky: goes by the attributes of
what it is given."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from launcher.runs.errors import BackendError

NO_JOBS = "No in-progress managed jobs"
"""SkyPilot's words where the controller has no address yet."""
SSH_FAILED = 255
"""Exit code of ssh where it is ssh itself that failed."""
_LOST = re.compile(rf"return ?code:? {SSH_FAILED}\b|^Failed to cancel managed job")
JOB_FIELDS = (
    "job_id", "task_id", "job_name", "status", "recovery_count", "failure_reason", "details", "submitted_at", "start_at",
    "end_at", "last_recovered_at", "cluster_resources", "infra", "cloud", "region", "zone", "current_cluster_name",
    "schedule_state",
)  # fmt: skip
"""What is asked for of a managed job."""


@dataclass(frozen=True, slots=True)
class Job:
    """A managed job, or a job on a cluster of one's own, as SkyPilot records it."""

    job_id: int
    name: str
    status: str
    """Name of a ManagedJobStatus or a JobStatus."""
    recoveries: int = 0
    reason: str | None = None
    infra: str | None = None
    cluster: str | None = None
    submitted_at: float | None = None
    ended_at: float | None = None
    spot: bool | None = False
    """None where SkyPilot tells what was asked for and not what was got: of a job whose cluster is gone."""
    is_cleaned_up: bool = True
    """Whether SkyPilot is through with it: its cluster is torn down. Of a job on a cluster of one's own: True."""


@dataclass(frozen=True, slots=True)
class Cluster:
    name: str
    status: str
    price_usd_per_hour: float | None
    infra: str | None
    spot: bool


class ControllerStopped(BackendError):
    """The jobs controller is a VM that stopped itself: nothing was active then. What it knows is on its disk."""


class ControllerAway(BackendError):
    """The jobs controller is there and does not answer: what it knows, and what runs, is not known."""


class ControllerLost(ControllerAway):
    """It broke off in the middle of an answer, as one does that stops itself just then: the next answer may tell."""


def lost_controller(error: BaseException) -> ControllerLost | None:
    """Of what SkyPilot raises where its ssh to the jobs controller ends with 255, or where a cancel fails for no stated reason."""
    if getattr(error, "returncode", None) != SSH_FAILED and not _LOST.search(str(error)):
        return None
    return ControllerLost(
        "SkyPilot's jobs controller was there and broke off, as one does that is just stopping itself; ask again in a minute"
    )


def without_controller(error: BaseException) -> BackendError | None:
    """What a ClusterNotUpError of the jobs controller means: ControllerStopped or ControllerAway; None where there is no
    controller, or the first one is being made, so that it can know no job."""
    status = getattr(error, "cluster_status", None)
    name = _name(status) if status is not None else None
    if name is None or (name == "INIT" and NO_JOBS in str(error)):
        return None
    if name == "STOPPED":
        return ControllerStopped(
            "SkyPilot's jobs controller has stopped itself, as it does when nothing runs; what it knows is on its disk"
        )
    return ControllerAway(
        f"SkyPilot's jobs controller ({name}) does not answer, so what runs is not known; ask again in a minute, `sky status` shows it"
    )


def managed_job(record: Any) -> Job:
    return Job(
        record.job_id, record.job_name or "", _name(record.status), record.recovery_count or 0,
        record.failure_reason or record.details, record.infra, record.current_cluster_name, record.submitted_at,
        record.end_at, is_spot(record.cluster_resources), record.schedule_state in (None, "DONE", "INACTIVE"),
    )  # fmt: skip


def cluster_job(record: Any, cluster: str) -> Job:
    return Job(
        record.job_id, record.job_name, _name(record.status), cluster=cluster, submitted_at=record.submitted_at,
        ended_at=record.end_at,
    )  # fmt: skip


def _name(status: Any) -> str:
    return str(getattr(status, "value", status))


def is_spot(resources: str | None) -> bool | None:
    """Of SkyPilot's words for a job's resources: `1x(gpus=L40S:8, ...)[Spot]` is a cluster's, `1x[L40S:8][On-demand|Spot]` a wish."""
    words = str(resources).lower()
    return None if resources in (None, "-", "") or "on-demand|spot" in words else "[spot]" in words


def cluster_of(record: Any) -> Cluster:
    launched = getattr(record.handle, "launched_resources", None)
    price = None
    if launched is not None:
        with contextlib.suppress(Exception):  # a cloud whose catalog lacks the machine has no price
            price = float(launched.get_cost(3600)) * (getattr(record.handle, "launched_nodes", 1) or 1)
    infra = "/".join(part for part in (record.cloud, record.region) if part) or None
    return Cluster(record.name, _name(record.status), price, infra, bool(getattr(launched, "use_spot", False)))
