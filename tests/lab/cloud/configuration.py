"""SkyPilot's configuration, credentials and prices on the pretend cloud's client."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from tests.lab import parts
from tests.lab.cloud import places
from tests.lab.cloud.image import COMMON_TABLES

_COLUMNS = [
    "InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo", "Price", "SpotPrice", "Region",
    "AvailabilityZone", "Arch",
]  # fmt: skip
_REGIONS = {"us-east-1": ["use1-az1", "use1-az2"], "us-west-2": ["usw2-az1", "usw2-az2"]}
"""Ids of zones, as in SkyPilot's tables: it asks the account which zones they are, and drops those that it does not have."""
_CPU_TYPES = {
    "m6i.large": (2, 8, 0.096),
    "m6i.xlarge": (4, 16, 0.192),
    "m6i.2xlarge": (8, 32, 0.384),
    "m6i.4xlarge": (16, 64, 0.768),
}
"""Type -> vCPUs, GiB, US dollars an hour on demand: what the jobs controller may be."""
_GPU_INFO = "{'Gpus': [{'Name': 'L40S', 'Manufacturer': 'NVIDIA', 'Count': 8, 'MemoryInfo': {'SizeInMiB': 45776}}], 'TotalGpuMemoryInMiB': 366208}"
GPU_TYPE, GPU_PRICES = "g6e.48xlarge", {"us-east-1": (30.13, 3.41), "us-west-2": (30.13, 9.5)}
"""Eight L40S. Region -> US dollars an hour on demand, and spot."""
_IMAGES = ("custom-cpu-ubuntu", "custom-gpu-ubuntu", "custom-gpu-ubuntu-cuda13")
_AMI = "ami-03cf127a"
"""One that moto knows in every region."""


def configure() -> None:
    for folder in (places.HOME / ".aws", places.HOME / ".sky"):
        folder.mkdir(parents=True, exist_ok=True)
    keys = f"[default]\naws_access_key_id = {places.KEY}\naws_secret_access_key = {places.SECRET}\n"
    (places.HOME / ".aws/credentials").write_text(keys)
    (places.HOME / ".aws/config").write_text(f"[default]\nregion = {places.REGION}\n")
    controller = f"{{cpus: 4, infra: aws/{places.REGION}}}"
    (places.HOME / ".sky/config.yaml").write_text(
        f"allowed_clouds: [aws]\njobs: {{controller: {{consolidation_mode: false, resources: {controller}}}}}\n"
    )
    regions, machines = _REGIONS, _machines()
    given = os.environ.get("DOLPHIN_SKY_CATALOGS")
    if given:
        regions, machines = _real_machines(Path(given) / "v8/aws/vms.csv")
    for region, zones in regions.items():
        for zone in zones:
            for name, (cpus, memory, price) in _CPU_TYPES.items():
                machines.append([name, "", "", cpus, memory, "", price, round(price * 0.4, 4), region, zone, "x86_64"])
    images = [
        [f"skypilot:{name}", region, "ubuntu", "22.04", _AMI, "20260101"] for name in _IMAGES for region in regions
    ]
    tables = {
        **COMMON_TABLES, "aws/vms.csv": [_COLUMNS, *machines],
        "aws/instance_quota_mapping.csv": [["InstanceType", "SpotInstanceCode", "OnDemandInstanceCode"]],
        "aws/images.csv": [["Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate"], *images],
    }  # fmt: skip
    for name, rows in tables.items():
        parts.write_table(places.HOME / ".sky/catalogs/v8" / name, rows)


def _machines() -> list[list[object]]:
    return [
        [GPU_TYPE, "L40S", 8.0, 192.0, 1536.0, _GPU_INFO, *GPU_PRICES[region], region, zone, "x86_64"]
        for region, zones in _REGIONS.items() for zone in zones
    ]  # fmt: skip


def _real_machines(path: Path) -> tuple[dict[str, list[str]], list[list[object]]]:
    """Zones by region, and the rows, of a table of real prices."""
    with open(path, newline="") as handle:
        found = list(csv.DictReader(handle))
    regions: dict[str, list[str]] = {}
    for row in found:
        zones = regions.setdefault(row["Region"], [])
        if row["AvailabilityZone"] not in zones:
            zones.append(row["AvailabilityZone"])
    return regions, [[row[name] for name in _COLUMNS] for row in found]
