"""Two jobs of one name by mistake are refused; two jobs whose names only begin alike are not; and a job whose record is gone is found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from launcher.backends.sky.jobs import Jobs
from launcher.runs import ledger
from launcher.runs.errors import BadUsage

A = "llama-3-1-8b-instruct-customer-support-lr1e5"
B = "llama-3-1-8b-instruct-customer-support-lr2e5"


class Queue:
    """Managed jobs that run, found by a part of their name as SkyPilot finds them."""

    def __init__(self, *names: str) -> None:
        self.ids = [ledger.new_id(name) for name in names]

    def jobs(self, part: str, *, active_only: bool) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=run_id, status="RUNNING", job_id=1) for run_id in self.ids if part in run_id]


def refuse_twins(running: str, started: str) -> None:
    Jobs(Queue(running)).refuse_namesakes(started)


@pytest.mark.parametrize(("running", "started"), [(A, B), ("demo", "demo-2"), ("demo-2", "demo"), ("my-demo", "demo")])
def test_names_that_begin_alike_may_run_beside_each_other(running: str, started: str) -> None:
    refuse_twins(running, started)


@pytest.mark.parametrize("name", [A, "demo"])
def test_a_second_job_of_the_same_name_is_refused(name: str) -> None:
    with pytest.raises(BadUsage, match="set another `name`"):
        refuse_twins(name, name)


class Clusters(Queue):
    """One warm cluster of the user's with a job on it, and one that is down."""

    def clusters(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="down"), SimpleNamespace(name="warm")]

    def cluster_jobs(self, cluster: str) -> list[SimpleNamespace] | None:
        return [SimpleNamespace(name="demo-1", status="RUNNING", job_id=7)] if cluster == "warm" else None

    def pending_launch(self, run_id: str) -> None:
        return None


def test_a_run_on_a_cluster_is_found_where_its_record_is_gone(monkeypatch, tmp_path) -> None:
    """`down` said that nothing of it ran, and the cluster went on."""
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    assert Jobs(Clusters()).find("demo-1") == {"kind": "cluster", "cluster": "warm", "job_id": 7}
    assert Jobs(Clusters()).find("demo-2") is None
