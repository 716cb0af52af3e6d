"""DOLPHIN_DEADLINE in SkyPilot's own classes; only the cluster's start is played. The disasters: a run that waits for spot machines
past its deadline; one that is on demand though spot is there; a job that SkyPilot refuses, or runs without the strategy."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.sky.deadline.names import KEY, MACHINE, STRATEGY
from launcher.backends.sky.task import Place, build_task, ship
from tests.support.require import has_skypilot, needs_skypilot
from tests.unit.test_sky_task import job_of, train_of

pytestmark = needs_skypilot
HOUR = 3600.0
A, B = "aws/us-east-1/us-east-1a", "aws/us-west-2/us-west-2b"
PLACES = [Place("aws", True, 9.0), Place("aws", False, 30.0)]

if has_skypilot():
    from sky.jobs import recovery_strategy

    import sky
    from launcher.backends.sky.deadline.plugin import DeadlinePlugin
    from sky import exceptions

    if "launcher.backends.sky.deadline.strategy" not in sys.modules:
        DeadlinePlugin().install(None)
    from launcher.backends.sky.deadline import strategy


def terms(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "deadline": 20 * HOUR, "budget": None, "progress": str(tmp_path / "progress.json"), "work_s": 10 * HOUR,
        "tick_s": 600.0, "restart_s": 600.0, "save_s": 60.0, "end_s": 0.0, "preemptible": [],
        "prices": [[A, True, 9.0], [B, True, 9.5], ["aws/us-east-1", False, 30.0]], **changes,
    }  # fmt: skip


def task_of(told: dict[str, Any]) -> Any:
    job = job_of(infra="aws")
    train = train_of(job)
    built = build_task(job, train, PLACES, ship(train), Path("/ship"), terms=told)
    built.pop("file_mounts")
    return sky.Task.from_yaml_config(sky.Task.from_yaml_config(built).to_yaml_config())


class Cloud:
    """Starts clusters by `answers`, one an attempt: a zone, None (there is none), an exception, or `hangs`."""

    def __init__(self, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.asked, self.cleaned = 0.0, list[tuple[list[bool], dict[str, Any]]](), 0
        self.answers: list[Any] = []
        self.task = task_of(told)

        async def launch(executor: Any, max_retry: int, raise_on_failure: bool, recovery: bool) -> float:
            assert (max_retry, raise_on_failure) == (1, True)
            machine = json.loads(executor.dag.tasks[0].envs[MACHINE])
            self.asked.append(([one.use_spot for one in executor.dag.tasks[0].resources], machine))
            answer = self.answers.pop(0)
            if answer == "hangs":
                await asyncio.Event().wait()
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                raise exceptions.ManagedJobReachedMaxRetriesError("none")
            self.zone = answer
            return self.now

        async def sleep(seconds: float) -> None:
            self.now += seconds

        def handle_of(_: str) -> Any:
            cloud, region, zone = (self.zone + "//").split("/")[:3]
            resources = type("R", (), {"cloud": cloud, "region": region or None, "zone": zone or None})
            return type("H", (), {"launched_resources": resources})

        monkeypatch.setattr(recovery_strategy.FailoverStrategyExecutor, "_launch", launch)
        monkeypatch.setattr(strategy.global_user_state, "get_handle_from_cluster_name", handle_of)
        monkeypatch.setattr(strategy.time, "time", lambda: self.now)
        monkeypatch.setattr(strategy.asyncio, "sleep", sleep)
        lock = asyncio.Lock()
        self.executor = recovery_strategy.StrategyExecutor.make(
            "cluster", sky.backends.CloudVmRayBackend(), self.task, 1, 0, None, set(), lock, asyncio.Condition(lock)
        )

        def cleanup() -> None:
            self.cleaned += 1

        monkeypatch.setattr(self.executor, "_cleanup_cluster", cleanup)

    def launch(self, *answers: Any) -> None:
        self.answers = list(answers)
        asyncio.run(self.executor.launch())
        assert self.answers == []

    def recover(self, *answers: Any, after_h: float) -> None:
        self.now += after_h * HOUR
        self.answers = list(answers)
        asyncio.run(self.executor.recover())
        assert self.answers == []

    @property
    def last(self) -> str:
        """The market that was asked for last."""
        return str(self.asked[-1][1]["market"])


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cloud]:
    return lambda **changes: Cloud(terms(tmp_path, **changes), monkeypatch)


def write(tmp_path: Path, **found: Any) -> None:
    (tmp_path / "progress.json").write_text(json.dumps({"total_steps": 1000, "seconds_a_step": 36.0, **found}))


def test_skypilot_gives_a_job_with_terms_this_strategy_and_what_it_has_to_keep(cloud: Callable[..., Cloud]) -> None:
    its = cloud()
    assert isinstance(its.executor, strategy.DeadlineStrategy)
    assert isinstance(its.executor, recovery_strategy.EagerFailoverStrategyExecutor)
    assert (its.executor.max_restarts_on_errors, its.executor.recover_on_exit_codes) == (0, [75])
    assert its.executor._told["prices"][0] == [A, True, 9.0]
    assert [one.job_recovery for one in its.task.resources] == [None, None]


def test_a_task_says_so_in_a_way_that_a_server_with_the_plugin_and_a_client_without_it_take(tmp_path: Path) -> None:
    from sky.utils import schemas

    recovery = next(iter(task_of(terms(tmp_path)).resources)).job_recovery
    assert recovery["strategy"] == STRATEGY
    assert KEY in schemas._extra_job_recovery_properties


def test_without_terms_the_strategy_says_what_it_lacks(cloud: Callable[..., Cloud]) -> None:
    with pytest.raises(ValueError, match="which `dolphin launch` writes"):
        cloud().executor.set_strategy_config({})


def test_spot_is_asked_for_while_there_is_slack_and_the_job_keeps_its_resources(cloud: Callable[..., Cloud]) -> None:
    its = cloud()
    wanted = its.task.resources
    its.launch(A)
    assert its.asked == [([True, True, True], {"market": "spot", "leave_at": None, "asked_at": 0.0})]
    assert its.task.resources == wanted


def test_a_run_with_slack_goes_back_to_spot_each_time_and_to_another_zone_first(
    cloud: Callable[..., Cloud], tmp_path: Path
) -> None:
    its = cloud(deadline=60 * HOUR)
    its.launch(A)
    for n, zone in enumerate((B, A, B)):
        write(tmp_path, step=100 * (n + 1))
        its.recover(zone, after_h=2)
        assert its.last == "spot"
    assert its.cleaned == 3


def test_a_run_whose_spot_machines_are_taken_again_and_again_is_on_demand_in_time(
    cloud: Callable[..., Cloud], tmp_path: Path
) -> None:
    """Half an hour is lost at each; nothing was committed in the last ones."""
    its = cloud(deadline=13 * HOUR)
    its.launch(A)
    write(tmp_path, step=0, restart_s=1500.0)
    for _ in range(6):
        its.recover(A, after_h=0.5)
        if its.last != "spot":
            break
    assert its.last == "on demand"
    assert its.asked[-1][0] == [False, True, True, True]  # any machine, on demand first
    assert 13 * HOUR - its.now >= 10 * HOUR + 2 * 1500  # the work, and a start that takes twice as long


@pytest.mark.parametrize(("deadline_h", "waits"), [(11.5, False), (60.0, True)])
def test_no_spot_machine_at_all_is_not_waited_for_past_the_slack(
    cloud: Callable[..., Cloud], deadline_h: float, waits: bool
) -> None:
    """As one that never has spot again: SkyPilot's own loop would ask for ever."""
    its = cloud(deadline=deadline_h * HOUR)
    its.answers = [None] * 500
    real = its.executor._choose

    def choose(at: float, now: Any) -> Any:
        choice = real(at, now)
        if choice.market.value == "on demand":
            its.answers[:] = ["aws/us-east-1"]
        return choice

    its.executor._choose = choose
    asyncio.run(its.executor.launch())
    assert its.last == "on demand"
    assert (its.now > 0) == waits
    assert its.now <= (deadline_h - 10) * HOUR - 2 * 600


def test_a_spot_machine_that_never_comes_up_is_given_up_with_the_slack(
    cloud: Callable[..., Cloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    its = cloud()
    monkeypatch.setattr(its.executor._live.__class__, "may_take_s", lambda *_: 0.05)
    choices = iter(["hangs", A])
    its.answers = list(choices)

    def give_up() -> None:
        its.cleaned += 1
        its.now += 10 * HOUR - 2000

    monkeypatch.setattr(its.executor, "_cleanup_cluster", give_up)
    asyncio.run(its.executor.launch())
    assert its.cleaned == 1
    assert [machine["market"] for _, machine in its.asked] == ["spot", "on demand"]


def test_a_node_that_gave_the_run_back_did_not_lose_its_zone(cloud: Callable[..., Cloud], tmp_path: Path) -> None:
    its = cloud(deadline=60 * HOUR)
    its.launch(A)
    write(tmp_path, step=500, left="node given back: spot machines are likely to be had again")
    assert its.executor.should_restart_on_failure([75])
    its.recover(A, after_h=3)
    assert its.executor._live.seen.num_ends == 0
    write(tmp_path, step=600)
    its.recover(B, after_h=3)
    assert its.executor._live.seen.num_ends == 1


def test_a_restart_is_measured_from_the_last_word_of_the_node_before(
    cloud: Callable[..., Cloud], tmp_path: Path
) -> None:
    """SkyPilot took five minutes to see that the node was gone and to clear up: a reserve without them misses the deadline."""
    its = cloud(deadline=60 * HOUR)
    its.launch(A)
    write(tmp_path, step=100, time=2 * HOUR - 300)
    its.recover(B, after_h=2)
    assert its.asked[-1][1]["asked_at"] == 2 * HOUR - 300
    its.recover(A, after_h=2)  # this node said nothing
    assert its.asked[-1][1]["asked_at"] == 4 * HOUR


def test_a_machine_on_demand_is_told_when_to_look_for_spot_again(cloud: Callable[..., Cloud], tmp_path: Path) -> None:
    its = cloud(deadline=30 * HOUR)
    write(tmp_path, step=0, restart_s=180.0)
    its.executor._live.saw(0.0, {A: False, B: False})
    its.executor._choose = lambda *_: strategy.Choice(strategy.Market.ON_DEMAND)
    its.launch("aws/us-east-1")
    assert its.last == "on demand"
    assert 600 < its.asked[-1][1]["leave_at"] < 12 * HOUR


def test_money_that_is_spent_ends_the_job_and_says_so(cloud: Callable[..., Cloud], tmp_path: Path) -> None:
    for deadline in (20 * HOUR, None):
        its = cloud(deadline=deadline, budget=20.0)
        write(tmp_path, step=10, spent_usd=19.9)
        with pytest.raises(exceptions.ManagedJobReachedMaxRetriesError, match=r"budget reached: \$19.90 of \$20.00"):
            its.recover(after_h=1)
        assert its.asked == []


def test_a_budget_alone_leaves_the_order_to_skypilot(cloud: Callable[..., Cloud]) -> None:
    its = cloud(deadline=None, budget=20.0)
    its.launch(A)
    assert its.asked[0][0] == [True, True, False, True]
    assert its.asked[0][1]["market"] is None


def test_what_no_other_machine_can_mend_ends_the_job(cloud: Callable[..., Cloud]) -> None:
    its = cloud(deadline=10 * HOUR)
    with pytest.raises(exceptions.ProvisionPrechecksError):
        its.launch(exceptions.ProvisionPrechecksError(reasons=[ValueError("no such GPU")]))


def test_a_run_that_had_a_machine_outlives_a_cloud_that_refuses_for_a_while(cloud: Callable[..., Cloud]) -> None:
    """As SkyPilot's own recovery does: credentials that do not answer in one minute end no run of days."""
    its = cloud(deadline=10 * HOUR)
    its.launch("aws/us-east-1")
    refused = exceptions.ProvisionPrechecksError(reasons=[ValueError("no access now")])
    its.recover(refused, refused, "aws/us-east-1", after_h=1)
    assert [machine["market"] for _, machine in its.asked] == ["on demand"] * 4


def test_progress_that_cannot_be_read_counts_as_none_made(cloud: Callable[..., Cloud], tmp_path: Path) -> None:
    its = cloud(deadline=13 * HOUR)
    its.launch(A)
    (tmp_path / "progress.json").write_text("{torn")
    its.recover("aws/us-east-1", after_h=2.9)
    assert its.last == "on demand"
