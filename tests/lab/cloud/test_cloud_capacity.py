"""Where the cloud has none: the next zone, the next region, the other kind, each at the price that it then costs."""

from __future__ import annotations

from tests.support.cloud_lab import GPUS, CloudLab

STEPS = {"train.max_steps": "6", "checkpoint.every.epochs": "null", "checkpoint.every.steps": "3"}


def test_a_region_without_spot_quota_is_left_for_the_next_and_the_price_is_said(cloud: CloudLab) -> None:
    with cloud.shortage(zone="us-east-1", kind="spot", type=GPUS, error="MaxSpotInstanceCountExceeded"):
        said = cloud.run(*cloud.job("elsewhere", **STEPS)).stderr
    [bought] = cloud.instances(cloud.run_of("elsewhere"))
    assert (bought["zone"][:-1], bought["kind"]) == ("us-west-2", "spot")
    assert "$9.50" in said, "the plan said $3.41, and it is $9.50"
    [attempt] = cloud.status(cloud.run_of("elsewhere"))["node_attempts"]
    assert attempt["price_usd_per_hour"] == 9.5
