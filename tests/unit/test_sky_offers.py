"""What SkyPilot offers and what its catalog's files say must be the same thing: a plan is made from either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.backends.base import Offer
from launcher.backends.sky.catalog import catalog_offers, caveats
from launcher.backends.sky.offers import offers_of
from launcher.jobfile.spec import JobSpec, ResourcesSpec
from launcher.runs.errors import NoCapacity
from tests.support.require import needs_skypilot
from tests.unit.test_sky_task import job_of

ROOT = Path(__file__).parents[2]
CATALOG = """\
InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch
g6e.xlarge,L40S,1.0,4.0,32.0,"{'Gpus': [{'Name': 'L40S', 'MemoryInfo': {'SizeInMiB': 45776}}]}",1.861,0.6,us-east-1,use1-az1,x86_64
g6e.4xlarge,L40S,1.0,16.0,128.0,"{'Gpus': [{'Name': 'L40S', 'MemoryInfo': {'SizeInMiB': 45776}}]}",3.004,0.9,us-east-1,use1-az1,x86_64
g6e.4xlarge,L40S,1.0,16.0,,"{'Gpus': [{'Name': 'L40S', 'MemoryInfo': {'SizeInMiB': 45776}}]}",3.1,1.1,us-east-2,use2-az1,x86_64
"""
ASK = """
import dataclasses, json
from launcher.backends.sky.client import SkyClient
print("offers", json.dumps([dataclasses.asdict(offer) for offer in SkyClient().offers("L40S", 1, "aws")]))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / ".sky" / "catalogs" / "v8" / "aws"
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_text(CATALOG)
    return tmp_path


def read(home: Path, **resources: object) -> list[tuple[object, ...]]:
    spec = ResourcesSpec.model_validate({"accelerators": "L40S:1", "spot": "never", **resources})
    offers = catalog_offers(spec, home / ".sky" / "catalogs" / "v8")
    return sorted((o.infra, o.instance_type or "", o.price_usd_per_hour, o.host_memory_gib or 0) for o in offers)


@needs_skypilot
def test_skypilot_offers_what_its_catalog_says(home: Path) -> None:
    env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=env, cwd=home, capture_output=True, text=True, timeout=120, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("offers ")), None)
    assert line is not None, done.stderr[-2000:]
    asked = [offer for offer in json.loads(line.removeprefix("offers ")) if not offer["spot"]]
    assert read(home) == sorted(
        (o["infra"], o["instance_type"], o["price_usd_per_hour"], o["host_memory_gib"] or 0) for o in asked
    )
    assert {offer["accelerator_memory_mib"] for offer in asked} == {45_776}


def test_nodes_with_too_little_memory_are_not_offered(home: Path) -> None:
    """One whose memory the catalog does not tell may be large enough."""
    assert [name for _, name, *_ in read(home)] == ["g6e.4xlarge", "g6e.xlarge", "g6e.4xlarge"]
    assert [name for _, name, *_ in read(home, memory_gb=100)] == ["g6e.4xlarge", "g6e.4xlarge"]


def test_a_need_that_no_node_meets_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOLPHIN_CATALOGS", str(home / ".sky" / "catalogs"))

    class Small:
        """A cloud that has what the catalog says of us-east-1."""

        def offers(self, gpu: str, count: int, infra: str) -> list[object]:
            spec = ResourcesSpec(accelerators=f"{gpu}:{count}", infra=(infra,), regions=("us-east-1",), spot="never")
            return list(catalog_offers(spec, home / ".sky" / "catalogs" / "v8"))

    job: JobSpec = job_of(accelerators="L40S:1", infra="aws", spot="never", memory_gb=256)
    with pytest.raises(NoCapacity, match=r"256 GiB of host memory are needed.*L40S:1 have 128 at most"):
        offers_of(Small(), job, None)
    job = job_of(accelerators="L40S:1", infra="aws", spot="never", memory_gb=128)
    assert [offer.instance_type for offer in offers_of(Small(), job, None)] == ["g6e.4xlarge"]


ZONED = """\
InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch
g,L40S,8.0,192.0,1536.0,,33.0,3.41,eu-south-2,eus2-az2,x86_64
g,L40S,8.0,192.0,1536.0,,30.13,8.02,us-east-1,use1-az1,x86_64
g,L40S,8.0,192.0,1536.0,,30.13,9.0,us-east-1,use1-az4,x86_64
"""


def zoned(tmp_path: Path, **resources: object) -> list[tuple[str, bool]]:
    spec = ResourcesSpec.model_validate({"accelerators": "L40S:8", **resources})
    return [(offer.infra, offer.spot) for offer in catalog_offers(spec, tmp_path / "v8")]


@pytest.fixture
def aws_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "v8" / "aws"
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_text(ZONED)
    return folder


def test_the_cheapest_offer_is_one_that_a_new_account_has(
    tmp_path: Path, aws_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """eu-south-2 is AWS's cheapest, and closed to an account that has not asked for it."""
    assert zoned(tmp_path)[0] == ("aws/us-east-1/use1-az1", True)
    assert zoned(tmp_path, regions=["eu-south-2"])[0] == ("aws/eu-south-2/eus2-az2", True), "who names it has it"
    assert zoned(tmp_path, infra="aws/eu-south-2")[0] == ("aws/eu-south-2/eus2-az2", True)
    monkeypatch.setenv("DOLPHIN_CATALOGS", str(tmp_path))
    first, left_out = caveats(job_of(accelerators="L40S:8"))
    assert "dolphin plan --on sky" in first
    assert "2 offers" in left_out
    assert "aws/eu-south-2/eus2-az2, spot, $3.41/h" in left_out
    assert len(caveats(job_of(accelerators="L40S:8", regions=["us-east-1"]))) == 1


def test_zones_are_the_accounts_own_where_skypilot_has_learned_them(tmp_path: Path, aws_folder: Path) -> None:
    """A zone id is the same for everybody and no zone that could be asked for; a zone that is missing is not the account's."""
    (aws_folder / "az_mappings-317e5726.csv").write_text(
        "AvailabilityZoneName,AvailabilityZone\neu-south-2b,eus2-az2\nus-east-1d,use1-az1\n"
    )
    assert zoned(tmp_path) == [
        ("aws/eu-south-2/eu-south-2b", True), ("aws/us-east-1/us-east-1d", True), ("aws/us-east-1", False),
        ("aws/eu-south-2", False),
    ]  # fmt: skip


def test_spot_prices_are_of_the_regions_that_skypilot_says_the_account_has(
    tmp_path: Path, aws_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOLPHIN_CATALOGS", str(tmp_path))

    class Account:
        """One without eu-south-2."""

        def offers(self, gpu: str, count: int, infra: str) -> list[Offer]:
            return [
                Offer("sky", "aws/us-east-1", gpu, count, spot, price) for spot, price in ((True, 8.02), (False, 30.13))
            ]

    found = offers_of(Account(), job_of(accelerators="L40S:8", infra="aws"), None)
    assert [offer.infra for offer in found] == ["aws/us-east-1/use1-az1", "aws/us-east-1/use1-az4", "aws/us-east-1"]
