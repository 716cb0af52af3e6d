"""SkyPilot's records as plain data: jobs and clusters. Imports no sky: goes by the attributes of what it is given."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

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
