"""Offers for a job from SkyPilot's prices, and the refusals that save a person from paying for nothing. Knows no sky.

Goes by a client's plain answers. Owns the checks before a submit: the GPU's name, the price cap, the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.backends.base import Offer
from launcher.backends.sky import errors
from launcher.backends.sky.catalog import catalog_offers, has_memory
from launcher.backends.sky.task import Place, cloud_of, places_of
from launcher.jobfile.regions import catalog_folder
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage, LauncherError, NoCapacity


def offers_of(client: Any, job: JobSpec, nproc: int | None) -> list[Offer]:
    """Cheapest first. NoCapacity where every offer is above the job's cap, BadUsage for a GPU that does not exist."""
    places = places_of(job, job.resources.infra or client.enabled())
    gpu, count = job.resources.gpu_name, job.resources.gpus_per_node
    if gpu is None:
        infras = list(dict.fromkeys(place.infra for place in places if place.infra))
        return [Offer("sky", infra, None, nproc or job.resources.ranks_per_node or 1) for infra in infras]
    found: list[Offer] = []
    for infra in dict.fromkeys(place.infra for place in places if place.infra):
        kinds = {place.spot for place in places if place.infra == infra}
        found += [offer for offer in _offers_at(client, job, infra) if offer.spot in kinds]
    if not found:
        _refuse_unknown(client, gpu, places)
        where = ", ".join(dict.fromkeys(place.infra or "" for place in places))
        raise NoCapacity(
            f"resources: nobody offers {gpu}:{count} at {where}; `sky gpus list {gpu} --all-regions` shows who does"
        )
    roomy = [offer for offer in found if has_memory(job.resources, offer.host_memory_gib)]
    if not roomy:
        most = max(offer.host_memory_gib or 0 for offer in found)
        raise NoCapacity(
            f"resources.memory_gb: {job.resources.memory_gb} GiB of host memory are needed, and nodes with {gpu}:{count} have "
            f"{most:,.0f} at most; `dolphin plan` shows what takes them"
        )
    found = roomy
    found.sort(key=lambda offer: (offer.price_usd_per_hour, offer.infra))
    cap = job.resources.max_hourly_cost
    affordable = [offer for offer in found if cap is None or offer.price_usd_per_hour / offer.num_nodes <= cap]
    if cap is not None and not affordable:
        raise errors.too_cheap(cap, found[0])
    return affordable


def priced(job: JobSpec, places: list[Place], offers: list[Offer]) -> list[Place]:
    """The places with the cheapest price that was offered at each; those with no offer within the cap are left out.

    With a cap they are regions: within a cloud SkyPilot goes on to regions above it."""
    found = []
    if job.resources.max_hourly_cost is not None and job.resources.gpu_name is not None:
        places = [part for place in places for part in _regions_of(place, offers)]
    for place in places:
        prices = [
            offer.price_usd_per_hour
            for offer in offers
            if offer.spot == place.spot and (offer.infra == place.infra or offer.infra.startswith(f"{place.infra}/"))
        ]
        if prices or job.resources.gpu_name is None:
            found.append(Place(place.infra, place.spot, min(prices) if prices else None))
    return found


def _regions_of(place: Place, offers: list[Offer]) -> list[Place]:
    """The place's regions that have an offer; itself where it is a region already, or has none."""
    prefix = f"{place.infra}/"
    regions = dict.fromkeys(
        "/".join(offer.infra.split("/")[:2])
        for offer in offers
        if offer.spot == place.spot and offer.infra.startswith(prefix)
    )
    return (
        [Place(region, place.spot) for region in regions]
        if place.infra and "/" not in place.infra and regions
        else [place]
    )


def refuse_losing_progress(job: JobSpec, options: Mapping[str, Any]) -> None:
    """BadUsage for a run whose checkpoints and model would go with the node, unless the person said so."""
    if job.checkpoint.store is not None or options.get("yes_lose_progress"):
        return
    if options.get("cluster") and job.resources.spot == "never":
        return  # a cluster of one's own stays until it is taken down; `dolphin fetch` reaches it
    raise BadUsage(
        "checkpoint.store is not set: checkpoints and model would be lost with the node; name a bucket (s3://, gs://) or a "
        "folder that the nodes share, or pass --yes-lose-progress"
    )


def tried(job: JobSpec, places: list[Place]) -> list[str]:
    """What was asked for, for an error."""
    what = job.resources.accelerators or "a CPU node"
    return [f"{what} at {place.infra}{' spot' if place.spot else ''}" for place in places]


def _offers_at(client: Any, job: JobSpec, infra: str) -> list[Offer]:
    """SkyPilot's own answer, with spot prices zone by zone where its catalog is at hand."""
    nodes = job.resources.num_nodes
    found: list[Offer] = [
        replace(offer, num_nodes=nodes, price_usd_per_hour=offer.price_usd_per_hour * nodes)
        for offer in client.offers(job.resources.gpu_name, job.resources.gpus_per_node, infra)
    ]
    on_spot = [offer for offer in found if offer.spot]
    regions = tuple(dict.fromkeys(offer.infra.split("/")[1] for offer in on_spot if "/" in offer.infra))
    if not regions:
        return found
    wanted = {"infra": (infra,), "regions": regions, "max_hourly_cost": None, "spot": "only"}
    zones = catalog_offers(job.resources.model_copy(update=wanted), catalog_folder())
    return [offer for offer in found if not offer.spot or not zones] + zones


def _refuse_unknown(client: Any, gpu: str, places: list[Place]) -> None:
    clouds = sorted({cloud_of(place.infra) for place in places if place.infra})
    try:
        known = client.accelerators(clouds)
    except LauncherError:
        return  # the names cannot be had: the caller's own words must do
    if known and gpu.upper() not in {name.upper() for name in known}:
        raise errors.unknown_gpu(gpu, known)
