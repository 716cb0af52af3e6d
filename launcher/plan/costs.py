"""What a run may cost in all: expected, at worst, and what is paid beside the nodes. Pure; asks nobody.

Owns the figures for what leaves a cloud's region. Refuses to know who sells what: rows and upkeep are handed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.backends.base import Upkeep
from launcher.config.names import URL
from launcher.units import GB

if TYPE_CHECKING:
    from launcher.plan.launch_plan import Row

EGRESS_USD_PER_GB: dict[str, tuple[float, float]] = {
    "aws": (0.02, 0.09), "gcp": (0.02, 0.12), "azure": (0.02, 0.087), "oci": (0.0085, 0.0085),
}  # fmt: skip
"""Cloud -> US dollars for a gigabyte to another of its regions, and out of the cloud. The clouds' price lists for North America
in their first tier, rounded; other continents cost up to four times that. Clouds that are not listed let it out free, or say
nothing."""
STORE_CLOUDS = {"s3": "aws", "gs": "gcp", "az": "azure"}
"""Scheme of a bucket's URL -> the cloud that it is in, unless an endpoint says otherwise."""


@dataclass(frozen=True, slots=True)
class Egress:
    """Checkpoints that leave a node's region: none of it is paid for where the bucket is in the region of the node."""

    num_saves: int
    num_bytes: int
    """Of all of them."""
    price_usd: float
    usd_per_gb: float
    leaves_cloud: bool
    """The bucket is in another cloud, so that it is paid for wherever the node is."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the whole run, in US dollars."""

    usd_per_hour: float
    """Of the nodes that are expected: the cheapest offer's."""
    expected: float
    """Mean over runs on them, what is paid beside them included."""
    worst: float
    """Where nothing cheaper is to be had than the dearest offer that would be taken."""
    worst_infra: str
    worst_on_spot: bool
    upkeep: tuple[Upkeep, ...]
    egress: Egress | None
    """None where nothing leaves, or nobody charges for it."""


def cost_of(
    rows: Sequence[Row], upkeep: Sequence[Upkeep], *, store: str | None, num_saves: int, save_bytes: int
) -> Cost | None:
    """Of rows, the cheapest first; `num_saves` of a run without preemptions. None where nothing costs anything, or hours are not known."""
    possible = [row for row in rows if row.is_possible and row.price_usd is not None and row.hours is not None]
    if not possible or not any(row.offer.price_usd_per_hour for row in possible):
        return None
    best, worst = possible[0], max(possible, key=lambda row: row.price_usd[2] if row.price_usd else 0.0)
    assert best.price_usd is not None
    assert best.hours is not None
    assert worst.price_usd is not None
    assert worst.hours is not None
    beside = sum(one.price_usd_per_hour for one in upkeep)
    return Cost(
        usd_per_hour=best.offer.price_usd_per_hour,
        expected=best.price_usd[1] + beside * best.hours.mean,
        worst=worst.price_usd[2] + beside * worst.hours.p90,
        worst_infra=worst.offer.infra,
        worst_on_spot=worst.offer.spot,
        upkeep=tuple(upkeep),
        egress=_egress(best.offer.infra, store, num_saves, save_bytes),
    )


def num_saves_of(num_steps: int, step_s: float, interval_s: float) -> int:
    """Saves of a run of so many steps: one each interval of training, at most one a step, and one at the end."""
    if interval_s <= 0:
        return num_steps
    return min(num_steps, max(1, math.ceil(num_steps * step_s / interval_s - 1e-9)))


def _egress(infra: str, store: str | None, num_saves: int, save_bytes: int) -> Egress | None:
    if store is None or not URL.match(store):
        return None
    cloud = infra.partition("/")[0].lower()
    between, out = EGRESS_USD_PER_GB.get(cloud, (0.0, 0.0))
    leaves_cloud = STORE_CLOUDS.get(store.partition(":")[0]) != cloud
    price = out if leaves_cloud else between
    if not price:
        return None
    total = num_saves * save_bytes
    return Egress(num_saves, total, total / GB * price, price, leaves_cloud)
