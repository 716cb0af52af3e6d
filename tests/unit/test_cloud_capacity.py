"""The pretend cloud refuses what a shortage names, and nothing else: a rehearsal that refuses too much proves nothing."""

from __future__ import annotations

import pytest

from tests.lab.cloud.capacity import ON_DEMAND, SPOT, Shortage
from tests.lab.cloud.places import address_of


@pytest.mark.parametrize(
    ("shortage", "asked", "is_refused"),
    [
        (Shortage(), ("us-east-1a", SPOT, "g6e.48xlarge"), True),
        (Shortage(zone="us-east-1a"), ("us-east-1b", SPOT, "g6e.48xlarge"), False),
        (Shortage(zone="us-east-1"), ("us-east-1b", ON_DEMAND, "g6e.48xlarge"), True),
        (Shortage(kind=SPOT), ("us-east-1a", ON_DEMAND, "g6e.48xlarge"), False),
        (Shortage(type="g6e"), ("us-east-1a", SPOT, "m6i.xlarge"), False),
    ],
)
def test_a_shortage_refuses_what_it_names(shortage: Shortage, asked: tuple[str, str, str], is_refused: bool) -> None:
    assert (shortage.refusal(*asked) is not None) == is_refused


def test_a_quota_answers_with_its_own_error() -> None:
    refusal = Shortage(error="VcpuLimitExceeded").refusal("us-east-1a", SPOT, "g6e.48xlarge")
    assert refusal is not None
    assert refusal[0] == "VcpuLimitExceeded"
    with pytest.raises(ValueError):
        Shortage(error="NoSuchError")


def test_no_two_starts_share_an_address() -> None:
    addresses = [address_of(number) for number in range(1000)]
    assert len(set(addresses)) == 1000
    assert all(1 < int(one.rpartition(".")[2]) < 255 for one in addresses)
