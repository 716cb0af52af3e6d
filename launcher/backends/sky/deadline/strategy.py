"""DOLPHIN_DEADLINE: SkyPilot's eager failover, asked for the machines that the policy names, and no longer than the slack allows.

Owns the way from a decision of `launcher.runs.policy` to SkyPilot's resources and back. Refuses to decide anything itself.
Written against SkyPilot 0.14.1: `_launch` is what its executors start a cluster with, `recover` what the controller calls.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from sky.jobs import recovery_strategy
from sky.utils import registry

from launcher.backends.sky.deadline import progress
from launcher.backends.sky.deadline.names import KEY, MACHINE, SPENT, STRATEGY
from launcher.runs.policy.live import Live, Progress, Terms
from launcher.runs.policy.situation import Choice, Market
from sky import exceptions, global_user_state

MAX_ZONES = 12
GAP_S = 60.0
"""Between attempts where nothing is to be had and nothing can be waited for."""
LONGEST_TRY_S = 3600.0
logger = logging.getLogger("sky.dolphin.deadline")


@dataclass(frozen=True)
class Place:
    """One way to get a machine."""

    zone: str
    market: Market
    resources: Any


@registry.JOBS_RECOVERY_STRATEGY_REGISTRY.type_register(name=STRATEGY, default=False)
class DeadlineStrategy(recovery_strategy.EagerFailoverStrategyExecutor):  # type: ignore[misc]
    def set_strategy_config(self, config: dict[str, Any]) -> None:
        """Called once, behind the constructor. ValueError where the job lacks the run's terms."""
        told = config.get(KEY)
        if not isinstance(told, dict):
            raise ValueError(f"job_recovery: {STRATEGY} needs `{KEY}`, which `dolphin launch` writes")
        self._told = told
        self._given_back = False
        """The run's node ended by itself, to be started again."""
        self._zone: str | None = None
        self._started_at = self._lost_s = 0.0
        """When the run's node was there, and how long it took after its last word until another could be asked for."""
        self._last: dict[str, Any] = {}
        """The newest progress that could be read."""
        task = self.dag.tasks[0]
        self._wanted = task.resources
        self._places = places_of(list(task.resources), told)
        spot = {place.zone: price for place, price in self._places if place.market is Market.SPOT and price}
        self._live: Live | None = None
        if told.get("deadline") is not None:
            demand = [price for place, price in self._places if place.market is Market.ON_DEMAND and price]
            dearest = max([*demand, *spot.values()], default=1.0)
            price = min(demand, default=dearest)
            self._live = Live(Terms(told["deadline"], price, spot, told["tick_s"], told.get("budget")))

    def should_restart_on_failure(self, exit_codes: list[int] | None = None) -> bool:
        again = bool(super().should_restart_on_failure(exit_codes))
        self._given_back = again
        return again

    async def recover(self) -> float:
        """As the controller calls it: the cluster is gone, or its job asked to be started again."""
        now = await self._progress()
        if self._live is not None and self._zone is not None and not (self._given_back and self._last.get("left")):
            self._live.saw(time.time(), {self._zone: False})
        self._given_back, self._zone = False, None
        await asyncio.to_thread(self._cleanup_cluster)
        last_word_at = float(self._last.get("time", 0.0))
        self._lost_s = time.time() - last_word_at if last_word_at > self._started_at else 0.0
        logger.info(f"dolphin: {now.work_left_s:.0f} s of work left, ${now.spent_usd:.2f} spent")
        submitted = await self._launch(max_retry=None, raise_on_failure=True, recovery=True)
        assert submitted is not None
        return submitted

    async def _launch(
        self, max_retry: int | None = 3, raise_on_failure: bool = True, recovery: bool = False
    ) -> float | None:
        """A machine, and the run started on it; however long that takes. Of the arguments `recovery` alone means anything here:
        how often is asked is the policy's. Raises what a launch raises that no other machine can mend, and
        ManagedJobReachedMaxRetriesError where the budget pays no machine any more."""
        while True:
            now, at = await self._progress(), time.time()
            choice = self._choose(at, now)
            if choice.is_out_of_budget:
                raise exceptions.ManagedJobReachedMaxRetriesError(
                    f"{SPENT}: ${now.spent_usd:.2f} of ${self._told['budget']:.2f}; `dolphin resume --set budget=...` goes on"
                )
            if choice.market is Market.NONE:
                await asyncio.sleep(self._told["tick_s"])
                continue
            submitted = await self._ask(choice, now, recovery)
            if submitted is not None:
                return submitted

    def _choose(self, at: float, now: Progress) -> Choice:
        if self._live is not None:
            return self._live.next_machine(at, now)
        # A budget alone: SkyPilot's own order, while a tick of the dearest machine can be paid.
        hours = (self._told["tick_s"] + now.save_s) / 3600
        dearest = max((price for _, price in self._places if price), default=0.0)
        return Choice(Market.SPOT, is_out_of_budget=now.spent_usd + dearest * hours > self._told["budget"])

    async def _ask(self, choice: Choice, now: Progress, recovery: bool) -> float | None:
        """Ask SkyPilot once for what was chosen. None where it is not to be had."""
        task, at = self.dag.tasks[0], time.time()
        asked, timeout_s = self._asked(choice), None
        leave_at = None
        if self._live is not None and choice.market is Market.SPOT:
            timeout_s = min(self._live.may_take_s(at, now), LONGEST_TRY_S)
        elif self._live is not None:
            leave_at = self._live.leaves_on_demand_at(at, now)
        market = choice.market.value if self._live is not None else None
        task.update_envs({MACHINE: json.dumps({"market": market, "leave_at": leave_at, "asked_at": at - self._lost_s})})
        task.set_resources(asked)
        logger.info(f"dolphin: asking for {choice.market.value} {choice.zone or ''}")
        try:
            launching = super()._launch(max_retry=1, raise_on_failure=True, recovery=recovery)
            submitted: float | None = await asyncio.wait_for(launching, timeout_s)
        except exceptions.ManagedJobReachedMaxRetriesError:
            submitted = None
        except exceptions.ProvisionPrechecksError:
            # Nothing else could be asked for; but what had a machine once has one again when a cloud answers again.
            if len(asked) == len(self._places) and not recovery:
                raise
            submitted = None
        except asyncio.TimeoutError:  # noqa: UP041 (SkyPilot's Python 3.10 has two of them)
            logger.info(f"dolphin: no machine within the {timeout_s:.0f} s that the deadline leaves")
            await asyncio.to_thread(self._cleanup_cluster)
            submitted = None
        finally:
            task.set_resources(self._wanted)
        if submitted is not None:
            self._started_at = time.time()
            await self._got(choice)
        elif choice.market is Market.SPOT and self._live is not None:
            self._live.saw(time.time(), dict.fromkeys(self._live.terms.spot, False))
        else:
            await asyncio.sleep(min(GAP_S, self._told["tick_s"]))
        return submitted

    def _asked(self, choice: Choice) -> list[Any]:
        """Resources in the order in which SkyPilot is to try them. A run that must go on takes any machine, on demand first."""
        by_price = [place for place, _ in self._places]
        spot = [place for place in by_price if place.market is Market.SPOT]
        if self._live is None:
            return [place.resources for place in by_price]
        if choice.market is Market.SPOT:
            return [place.resources for place in sorted(spot, key=lambda one: one.zone != choice.zone)]
        return [place.resources for place in by_price if place.market is Market.ON_DEMAND] + [
            place.resources for place in spot
        ]

    async def _got(self, choice: Choice) -> None:
        """Note which zone gave the machine."""
        if self._live is None or choice.market is not Market.SPOT:
            return
        handle = await asyncio.to_thread(global_user_state.get_handle_from_cluster_name, self.cluster_name)
        self._zone = nearest(infra_of(handle.launched_resources), list(self._live.terms.spot)) or choice.zone
        if self._zone is not None:
            self._live.saw(time.time(), {self._zone: True})

    async def _progress(self) -> Progress:
        """By the store; where that cannot be read, by what was read last, and by the plan before that."""
        task = self.dag.tasks[0]
        environment = {
            **task.envs,
            **{name: str(getattr(v, "get", lambda v=v: v)()) for name, v in task.secrets.items()},
        }
        found = await asyncio.to_thread(progress.read, self._told["progress"], environment)
        self._last = found or self._last
        return progress_of(self._last, self._told, time.time())


def progress_of(found: dict[str, Any], told: dict[str, Any], now_s: float) -> Progress:
    """What the policy needs, of progress.json and the run's terms. Where neither says how much work there is, half of the time
    that is left: the node knows better with its first steps, and gives the run back where that is too much."""
    if "total_steps" in found and "seconds_a_step" in found:
        work_s = (found["total_steps"] - found.get("step", 0)) * found["seconds_a_step"] + told["end_s"]
    elif told.get("work_s") is not None:
        work_s = told["work_s"] + told["end_s"]
    else:
        work_s = max(0.0, (told.get("deadline") or now_s) - now_s) / 2
    return Progress(
        work_s,
        found.get("restart_s", told["restart_s"]),
        found.get("save_s", told["save_s"]),
        found.get("spent_usd", 0.0),
    )


def places_of(resources: list[Any], told: dict[str, Any]) -> list[tuple[Place, float | None]]:
    """Where the task's resources can be had, and for how much; cheapest first, those of no known price last. Spot zone by zone as
    far as prices are known so."""
    prices = [(str(infra).lower(), bool(spot), float(usd)) for infra, spot, usd in told["prices"]]
    preemptible = {str(infra).lower() for infra in told.get("preemptible", ())}
    found: list[tuple[Place, float | None]] = []
    for one in resources:
        infra = infra_of(one)
        is_spot = bool(one.use_spot) or infra in preemptible
        market = Market.SPOT if is_spot else Market.ON_DEMAND
        here = [(usd, at, spot) for at, spot, usd in prices if (at + "/").startswith(infra + "/")]
        known = sorted((usd, at) for usd, at, spot in here if (spot or at in preemptible) == is_spot)
        if is_spot:
            found += [(Place(at, market, _at(one, at)), usd) for usd, at in known[:MAX_ZONES]]
        if not is_spot or not known or known[0][1] != infra:
            found.append((Place(infra, market, one), known[0][0] if known and not is_spot else None))
    return sorted(found, key=lambda item: (item[1] is None, item[1] or 0.0))


def infra_of(resources: Any) -> str:
    """`cloud/region/zone` as far as stated, in small letters."""
    parts = (resources.cloud, resources.region, resources.zone)
    return "/".join(str(part).lower() for part in parts if part is not None)


def nearest(infra: str, zones: list[str]) -> str | None:
    """The zone of which this place is a part, or the other way round."""
    return next(
        (zone for zone in zones if (infra + "/").startswith(zone + "/") or (zone + "/").startswith(infra + "/")), None
    )


def _at(resources: Any, infra: str) -> Any:
    _, _, place = infra.partition("/")
    region, _, zone = place.partition("/")
    named = {name: value for name, value in (("region", region), ("zone", zone)) if value}
    try:
        return resources.copy(**{name: getattr(resources, name) or value for name, value in named.items()})
    except ValueError:  # a zone that this machine's catalog does not have: the wider place still may
        return resources
