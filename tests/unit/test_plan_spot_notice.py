"""Whether a save fits into a spot notice is said before anything is paid: a plan that counts on it loses its hours."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.backends.base import Offer
from launcher.jobfile.spec import JobSpec
from launcher.plan.spot_notice import note

SPOT = Offer("sky", "aws/eu-south-2/a", "L40S", 8, True, 3.41, 45_776, "g6e.48xlarge")
REFERENCE_BYTES = 54_500_000_000


def job_of(tier: str = "high", store: str | None = "s3://bucket/runs") -> JobSpec:
    return JobSpec.model_validate({
        "name": "demo", "model": {"base": "owner/base"}, "data": {"sources": [{"path": "hf://owner/data"}]},
        "checkpoint": {"store": store}, "resources": {"accelerators": "L40S:8", "disk_tier": tier},
    })  # fmt: skip


def test_the_reference_job_s_save_is_longer_than_the_notice_on_the_disk_that_skypilot_takes() -> None:
    said = note(SPOT, job_of("medium"), REFERENCE_BYTES, 1500)
    assert said == (
        "a save writes 54.5 GB on each node, 4 min 10 s at 218 MB/s; notice is given 120 s ahead: too short, so a node that goes "
        "costs up to 25 min of training; resources.disk_tier: best is faster"
    )
    assert "too short" in (note(SPOT, job_of("high"), REFERENCE_BYTES, 1500) or ""), "125 s"


def test_a_save_that_fits_says_what_is_left_for_the_bucket() -> None:
    assert (note(SPOT, job_of("best"), REFERENCE_BYTES, 1500) or "").endswith(
        "14 s at 4,000 MB/s; notice is given 120 s ahead: it fits, which leaves 1 min 46 s to send it to the bucket"
    )
    two = dataclasses.replace(SPOT, num_nodes=2)
    assert (note(two, job_of("high", "/shared"), REFERENCE_BYTES, 1500) or "").endswith("it fits")


@pytest.mark.parametrize("offer", [dataclasses.replace(SPOT, spot=False), dataclasses.replace(SPOT, infra="oci/x")])
def test_nothing_is_said_where_nobody_takes_the_node_or_nothing_is_known(offer: Offer) -> None:
    assert note(offer, job_of(), REFERENCE_BYTES, 1500) is None
