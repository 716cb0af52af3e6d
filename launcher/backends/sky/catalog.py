"""Offers from SkyPilot's catalog files, read without SkyPilot: prices of machines with the accelerators a job asks for.

Owns the files' columns, the filter, and which regions and zones an account has. Refuses to use the network: what is not cached
is not offered.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from launcher.backends.base import Offer
from launcher.jobfile.regions import catalog_folder
from launcher.jobfile.spec import JobSpec, ResourcesSpec

ON_REQUEST = {
    "aws": frozenset({
        "af-south-1", "ap-east-1", "ap-east-2", "ap-south-2", "ap-southeast-3", "ap-southeast-4", "ap-southeast-5",
        "ap-southeast-6", "ap-southeast-7", "ca-west-1", "eu-central-2", "eu-south-1", "eu-south-2", "il-central-1",
        "me-central-1", "me-south-1", "mx-central-1",
    })
}  # fmt: skip
"""Regions that a new account does not have until it asks (AWS's list of regions that are disabled by default)."""
ZONES_OF_ACCOUNT = "az_mappings-*.csv"
"""What SkyPilot learned of an account: AWS's zone ids (use1-az1), as its catalog has them, and the account's names for them."""


def offers_of_job(job: JobSpec) -> list[Offer]:
    """What the cached catalog offers a job, cheapest first; none where nothing is cached."""
    return catalog_offers(job.resources, catalog_folder())


def caveats(job: JobSpec) -> list[str]:
    """What must be known of `offers_of_job`'s answer: whether those places are the account's is SkyPilot's to say."""
    folder = catalog_folder()
    if folder is None or job.resources.gpu_name is None:
        return []
    ask = "`dolphin plan --on sky` asks SkyPilot"
    left_out = [
        offer
        for cloud, regions in ON_REQUEST.items()
        if _zones_of_account(folder / cloud) is None and not job.resources.regions
        for offer in catalog_offers(job.resources.model_copy(update={"regions": tuple(sorted(regions))}), folder)
        if offer.infra.startswith(f"{cloud}/")
    ]
    found = [f"offers of the cached catalog, of clouds that may not be enabled here; {ask}"]
    if left_out:
        best = left_out[0]
        place, kind = best.infra, "spot" if best.spot else "on demand"
        found.append(
            f"left out: {len(left_out)} offers of regions that an account has to ask for (the cheapest: {place}, {kind}, "
            f"${best.price_usd_per_hour:.2f}/h); resources.regions names them"
        )
    return found


def catalog_offers(resources: ResourcesSpec, folder: Path | None) -> list[Offer]:
    """Every offer of the accelerators that `resources` ask for and its filters let through, cheapest first.

    An on-demand price holds for a whole region and stands there once; a spot price differs by zone. Of a cloud whose zones
    SkyPilot has learned, those of the account by their names; else the regions that every account has, and those that are named.
    """
    if folder is None or resources.gpu_name is None:
        return []
    found: dict[tuple[str, bool, str | None], Offer] = {}
    for path in sorted(folder.glob("*/vms.csv")):
        cloud = path.parent.name
        for offer in _offers_of(path, cloud, resources):
            key = (offer.infra, offer.spot, offer.instance_type)
            if key not in found or offer.price_usd_per_hour < found[key].price_usd_per_hour:
                found[key] = offer
    return sorted(found.values(), key=lambda offer: (offer.price_usd_per_hour, offer.infra))


def has_memory(resources: ResourcesSpec, memory_gib: float | None) -> bool:
    """Whether a node with so much host memory will do; one that does not tell may."""
    return resources.memory_gb is None or memory_gib is None or memory_gib >= resources.memory_gb


def _offers_of(path: Path, cloud: str, resources: ResourcesSpec) -> Iterator[Offer]:
    zones = _zones_of_account(path.parent)
    named = {*resources.regions, *(infra.split("/")[1] for infra in resources.infra if "/" in infra)}
    hidden = ON_REQUEST.get(cloud, frozenset()) - named if zones is None else frozenset()
    with open(path, newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            name, count = row.get("AcceleratorName") or "", _number(row.get("AcceleratorCount"))
            if name.upper() != (resources.gpu_name or "").upper() or count != resources.gpus_per_node:
                continue
            memory_gib = _number(row.get("MemoryGiB"))
            if not has_memory(resources, memory_gib):
                continue
            region, zone = row.get("Region") or "", row.get("AvailabilityZone") or ""
            if (resources.regions and region not in resources.regions) or region in hidden:
                continue
            if zones is not None and zone:
                if zone not in zones:
                    continue
                zone = zones[zone]
            for is_spot, column in ((False, "Price"), (True, "SpotPrice")):
                price = _number(row.get(column))
                place = "/".join(part for part in (cloud, region, zone if is_spot else "") if part)
                if price is None or not _is_wanted(resources, place, price, is_spot):
                    continue
                yield Offer(
                    backend="sky", infra=place, accelerator=name, count=int(count), spot=is_spot,
                    price_usd_per_hour=price * resources.num_nodes, accelerator_memory_mib=_memory_mib(row),
                    instance_type=row.get("InstanceType") or None, num_nodes=resources.num_nodes,
                    host_memory_gib=memory_gib,
                )  # fmt: skip


def _zones_of_account(folder: Path) -> dict[str, str] | None:
    """Zone id to zone name, of the account that SkyPilot asked for last; None where it never did."""
    files = sorted(folder.glob(ZONES_OF_ACCOUNT), key=lambda file: file.stat().st_mtime)
    if not files:
        return None
    with open(files[-1], newline="", encoding="utf-8") as handle:
        return {row["AvailabilityZone"]: row["AvailabilityZoneName"] for row in csv.DictReader(handle)}


def _is_wanted(resources: ResourcesSpec, place: str, price: float, is_spot: bool) -> bool:
    if (resources.spot == "only" and not is_spot) or (resources.spot == "never" and is_spot):
        return False
    if resources.max_hourly_cost is not None and price > resources.max_hourly_cost:
        return False
    return not resources.infra or any(place == infra or place.startswith(f"{infra}/") for infra in resources.infra)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _memory_mib(row: dict[str, str]) -> int | None:
    """Memory of one GPU: the catalogs hold it inside a Python literal that needs no evaluation."""
    found = re.search(r"'SizeInMiB':\s*(\d+)", row.get("GpuInfo") or "")
    return int(found[1]) if found else None
