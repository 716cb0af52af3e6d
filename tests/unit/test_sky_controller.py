"""The jobs controller is a VM that stops itself, that is made and woken, and that may not answer: none of it means that a run is
gone; and a submit that somebody stops must not start eight GPUs an hour later."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.backends.sky import jobs as jobs_module
from launcher.backends.sky.answers import NO_JOBS, ControllerAway, ControllerLost, ControllerStopped, without_controller
from launcher.backends.sky.backend import SkyRuns
from launcher.backends.sky.client import SkyClient
from launcher.runs import ledger
from launcher.runs.errors import BackendError, LauncherError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState
from launcher.runs.waiting import awaited
from tests.support.require import needs_skypilot


class ClusterNotUpError(Exception):
    """As SkyPilot's."""

    def __init__(self, message: str, cluster_status: str | None = None) -> None:
        super().__init__(message)
        self.cluster_status = cluster_status and SimpleNamespace(value=cluster_status)


class Sky:
    """SkyPilot's client with a controller in some state, the jobs on it, and the requests under way."""

    def __init__(self, *names: str, controller: str = "UP", status: str = "RUNNING") -> None:
        self.names, self.controller, self.job_status = list(names), controller, status
        self.requests: list[str] = []
        self.done: list[str] = []
        self.shows_after = 0
        """Looks until a job that was cut off in its submit shows."""

    def jobs(self, part: str, *, active_only: bool, wake: bool = False) -> list[SimpleNamespace]:
        if self.controller == "ABSENT":
            return []
        if self.controller == "STOPPED" and not wake:
            raise ControllerStopped("asleep")
        if self.controller == "AWAY":
            raise ControllerAway("SkyPilot's jobs controller (UP) does not answer")
        if wake:
            self.done.append("woken")
            self.controller = "UP"
        if self.shows_after:
            self.shows_after -= 1
            return []
        is_active = self.job_status in ("RUNNING", "PENDING")
        return [self._job(name) for name in self.names if part in name and (is_active or not active_only)]

    def _job(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, status=self.job_status, job_id=1, infra="aws", cluster=None, recoveries=0, submitted_at=0.0,
                               ended_at=None, reason=None, spot=None, is_cleaned_up=True)  # fmt: skip

    def pending_launch(self, run_id: str) -> str | None:
        return self.requests[0] if self.requests else None

    def cancel_request(self, request_id: str) -> None:
        self.done.append(f"withdrawn {request_id}")
        self.requests.remove(request_id)

    def cancel_managed(self, job_id: int) -> None:
        self.done.append(f"cancelled {job_id}")
        self.job_status = "CANCELLED"

    def clusters(self) -> list[SimpleNamespace]:
        return []

    def tail_managed(self, *_: object) -> None:
        return


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    record = ledger.create("demo-1", "demo", "sky")
    return ledger.update(record, submissions=1, handle={"kind": "managed", "job_id": 1})


def runs(sky: Sky) -> SkyRuns:
    found = SkyRuns(sky)
    found.poll_s = 0.0  # no test waits
    return found


def test_a_controller_that_is_absent_stopped_or_away_is_three_things() -> None:
    assert without_controller(ClusterNotUpError(f"{NO_JOBS}.")) is None
    assert without_controller(ClusterNotUpError(f"{NO_JOBS}.", "INIT")) is None, "the first one is being made"
    assert isinstance(without_controller(ClusterNotUpError("stopped", "STOPPED")), ControllerStopped)
    for status in ("UP", "INIT", "AUTOSTOPPING", "HIBERNATING"):
        problem = without_controller(ClusterNotUpError("Failed to connect to jobs controller", status))
        assert isinstance(problem, ControllerAway), status


@needs_skypilot
def test_skypilot_tells_where_its_controller_is_also_over_the_wire() -> None:
    from sky.utils import status_lib
    from sky.utils.controller_utils import Controllers

    from sky import exceptions

    assert Controllers.JOBS_CONTROLLER.value.default_hint_if_non_existent.startswith(NO_JOBS)
    for status, kind in (
        (status_lib.ClusterStatus.STOPPED, ControllerStopped),
        (status_lib.ClusterStatus.UP, ControllerAway),
    ):
        told = exceptions.deserialize_exception(
            exceptions.serialize_exception(exceptions.ClusterNotUpError("away", cluster_status=status))
        )
        assert type(told).__name__ == "ClusterNotUpError"
        assert isinstance(without_controller(told), kind)


def client(raises: Exception | None, **more: Any) -> tuple[SkyClient, list[dict[str, Any]]]:
    """A SkyClient over stand-ins of SkyPilot's modules, and what it asked the queue."""
    asked: list[dict[str, Any]] = []

    def queue_v2(**arguments: Any) -> str:
        asked.append(arguments)
        if raises is not None and not arguments["refresh"]:
            raise raises
        return "request"

    found = object.__new__(SkyClient)
    found._lock = threading.Lock()
    sdk = SimpleNamespace(get=lambda request: ([],) if request == "request" else None, **more)
    found._modules = {"sky.jobs.client.sdk": SimpleNamespace(queue_v2=queue_v2), "sky.client.sdk": sdk}
    return found, asked


def test_the_client_wakes_a_controller_only_where_it_is_told_to() -> None:
    sleeping, asked = client(ClusterNotUpError("stopped", "STOPPED"))
    with pytest.raises(ControllerStopped):
        sleeping.jobs("demo", active_only=False)
    assert sleeping.jobs("demo", active_only=False, wake=True) == []
    assert [one["refresh"] for one in asked] == [False, True]
    assert client(ClusterNotUpError(NO_JOBS))[0].jobs("demo", active_only=True) == []
    with pytest.raises(ControllerAway):
        client(ClusterNotUpError("Failed to connect", "UP"))[0].jobs("demo", active_only=True)


def test_a_request_is_withdrawn_by_its_id() -> None:
    cancelled: list[Any] = []
    found, _ = client(None, api_cancel=lambda ids, silent: cancelled.append(ids))
    found.cancel_request("r-1")
    assert cancelled == [["r-1"]]


def test_the_next_morning_a_run_is_what_its_trainer_said_and_no_vm_is_woken(record: RunRecord) -> None:
    record.files.outcome.write_text('{"state": "done", "exit_code": 0}')
    node = {"time": 0.0, "infra": "AWS/us-east-1", "price_usd_per_hour": 6.0}
    record.files.nodes.write_text(json.dumps(node) + "\n")
    record.files.events.write_text('{"event": "finished", "time": 1800.0}\n')
    sky = Sky(record.run_id, controller="STOPPED", status="SUCCEEDED")
    status = runs(sky).status(record)
    assert (status.state, status.price_usd_so_far, sky.done) == (RunState.SUCCEEDED, 3.0, [])


@pytest.mark.parametrize("outcome", [None, '{"state": "preempted", "exit_code": 75}'])
def test_a_controller_that_sleeps_over_a_run_without_a_last_word_is_woken_and_asked(
    record: RunRecord, outcome: str | None
) -> None:
    if outcome:
        record.files.outcome.write_text(outcome)
    sky = Sky(record.run_id, controller="STOPPED", status="FAILED")
    assert runs(sky).status(record).state is not RunState.LOST
    assert sky.done[0] == "woken"


def test_a_controller_that_does_not_answer_is_no_reason_for_a_twin_nor_for_gone(record: RunRecord) -> None:
    sky = runs(Sky(record.run_id, controller="AWAY"))
    for ask in (lambda: sky.status(record), lambda: sky.find(record.run_id), lambda: sky.down(record, 0.0),
                lambda: sky._jobs.refuse_twins(record), lambda: sky._jobs.refuse_namesakes("demo")):  # fmt: skip
        with pytest.raises(BackendError, match="does not answer"):
            ask()


def test_a_controller_that_was_stopped_over_a_run_that_goes_on_makes_no_twin(record: RunRecord) -> None:
    sky = Sky(record.run_id, controller="STOPPED")
    with pytest.raises(ControllerStopped):
        runs(sky).find(record.run_id)  # a look wakes nobody, and says nothing that it does not know
    with pytest.raises(BackendError, match="is active already"):
        runs(sky)._jobs.refuse_twins(record)
    assert sky.done == ["woken"]


@pytest.mark.parametrize("problem", [ControllerLost("broke off"), ControllerStopped("asleep")])
def test_down_of_a_run_whose_controller_stops_itself_meanwhile_wakes_it_and_cancels(
    record: RunRecord, problem: BackendError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "AGAIN_S", (0.0,))
    sky = Sky(record.run_id)
    cancel, look, failing = sky.cancel_managed, sky.jobs, [problem]

    def cancel_managed(job_id: int) -> None:
        if failing:
            sky.controller = "STOPPED"
            raise failing.pop()
        cancel(job_id)

    def jobs(part: str, *, active_only: bool, wake: bool = False) -> list[SimpleNamespace]:
        if sky.controller == "STOPPED" and sky.done == []:
            sky.done.append("broke off")
            raise ControllerLost("broke off")
        return look(part, active_only=active_only, wake=wake)

    monkeypatch.setattr(sky, "cancel_managed", cancel_managed)
    monkeypatch.setattr(sky, "jobs", jobs)
    assert runs(sky).down(record, 0.0).is_gone
    assert sky.done == ["broke off", "woken", "cancelled 1"]


@pytest.mark.parametrize(
    "text", ["Failed to fetch managed jobs with returncode: 255.\nssh: ...", "Failed to cancel managed job", "x failed with return code 255"]
)  # fmt: skip
def test_an_ssh_that_breaks_off_is_a_controller_that_is_lost(text: str) -> None:
    broken, _ = client(RuntimeError(text))
    with pytest.raises(ControllerLost):
        broken.jobs("demo", active_only=True)
    with pytest.raises(BackendError, match="SkyPilot failed: RuntimeError: no room") as caught:
        client(RuntimeError("no room, exit 2555"))[0].jobs("demo", active_only=True)
    assert not isinstance(caught.value, ControllerAway)


def test_a_person_is_told_that_a_controller_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes of `dolphin status` were an unexplained question about jobs."""
    sleeping, _ = client(None)
    told = []
    monkeypatch.setattr(sleeping._modules["sky.client.sdk"], "get", lambda _: ([], told.append(awaited())))
    sleeping.jobs("demo", active_only=False, wake=True)
    sleeping.jobs("demo", active_only=False)
    assert "starting its jobs controller, a VM that has stopped itself" in told[0].what
    assert "starting" not in told[1].what


@pytest.mark.parametrize("submissions", [1, 2])
def test_a_submit_asks_the_controller_once_for_twins_of_the_run_and_of_its_name(
    record: RunRecord, submissions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is an ssh to a VM that starts a Python there: half a minute before anything was submitted."""
    record = ledger.update(record, submissions=submissions, handle=None)
    other = ledger.new_id("demo")
    asked = []
    own = (record.run_id,) if submissions > 1 else ()  # a first submit has none
    for names, problem in (((), None), ((other,), "set another `name`"), (own, own and "is active already")):
        sky = Sky(*names)
        jobs = sky.jobs
        monkeypatch.setattr(sky, "jobs", lambda *a, jobs=jobs, **k: (asked.append(a), jobs(*a, **k))[1])
        if not problem:
            runs(sky)._jobs.refuse_twins(record)
        else:
            with pytest.raises(LauncherError, match=problem):
                runs(sky)._jobs.refuse_twins(record)
    assert len(asked) == 3


def test_a_run_on_a_cluster_of_ones_own_asks_no_jobs_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    record = ledger.create("demo-2", "demo", "sky", options={"cluster": "mine"})
    sky = Sky(controller="AWAY")
    sky.cluster_jobs = lambda name: [SimpleNamespace(name="demo-2", status="RUNNING", job_id=7)]  # type: ignore[attr-defined]
    assert runs(sky).find(record.run_id) == {"kind": "cluster", "cluster": "mine", "job_id": 7}


def test_a_sleeping_controller_is_not_woken_for_the_plan_of_another_job() -> None:
    sky = Sky(controller="STOPPED")
    runs(sky)._jobs.refuse_namesakes("other")
    assert sky.done == []


@pytest.mark.parametrize("controller", ["ABSENT", "STOPPED", "AWAY"])
def test_down_during_a_submit_withdraws_it(record: RunRecord, controller: str) -> None:
    """The controller is being made, or woken, for this very run."""
    record = ledger.update(record, handle=None)
    sky = Sky(controller=controller)
    sky.requests = ["r-1"]
    if controller != "ABSENT":
        cancel = sky.cancel_request

        def and_is_up(request_id: str) -> None:
            cancel(request_id)
            sky.controller = "UP"

        sky.cancel_request = and_is_up  # type: ignore[method-assign]
    report = runs(sky).down(record, 0.0)
    assert report.is_gone
    assert report.detail == "its submit was withdrawn"
    assert sky.done == ["withdrawn r-1"]


def test_a_job_that_shows_after_its_submit_was_withdrawn_is_cancelled_too(record: RunRecord) -> None:
    record = ledger.update(record, handle=None)
    sky = Sky(record.run_id, status="PENDING")
    sky.requests, sky.shows_after = ["r-1"], 3
    report = runs(sky).down(record, 0.0)
    assert report.is_gone
    assert sky.done == ["withdrawn r-1", "cancelled 1"]


def test_a_run_is_never_gone_while_a_request_answers(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.backends.sky import stopping

    monkeypatch.setattr(stopping, "_DOWN_TIMEOUT_S", 0.0)
    sky = Sky(controller="ABSENT")
    sky.requests = ["r-1"]
    sky.cancel_request = lambda request_id: sky.done.append("in vain")  # type: ignore[method-assign]
    report = runs(sky).down(ledger.update(record, handle=None), 0.0)
    assert not report.is_gone
    assert report.left == ("request r-1 is still starting it: `sky api cancel r-1`",)
