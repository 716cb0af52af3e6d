"""`dolphin status` against deadline and budget: whoever reads it decides whether to give more."""

from __future__ import annotations

import pytest

from launcher.follow.standing import bill_row, rows, standing
from trainer.run.limits import Limits
from trainer.run.paid import Paid

NOW = 1_796_148_000.0
LIMITS = Limits(deadline_at=NOW + 7200, budget_usd=20.0, upkeep_usd_per_hour=1.0, save_s=100, export_s=500)


def test_slack_and_the_sum_of_all_count_the_save_and_the_export() -> None:
    stands = standing(LIMITS, Paid(2.0, 10.0), NOW, 3000.0, 5.0)
    assert stands.projected_end == NOW + 3600
    assert stands.slack_s == 3600
    assert stands.projected_usd == pytest.approx(16.0)
    assert rows(stands) == [
        ("deadline", "2026-12-01 20:00 UTC; done about 2026-12-01 19:00 UTC, 1 h to spare"),
        ("budget", "$10.00 of $20.00 spent; about $16.00 in all"),
    ]


def test_what_is_late_says_so() -> None:
    (deadline, _) = rows(standing(LIMITS, Paid(2.0, 10.0), NOW, 9000.0, 5.0))
    assert deadline[1].endswith("40 min late")


def test_what_is_not_known_is_not_made_up() -> None:
    stands = standing(LIMITS, Paid(2.0, None), NOW, None, None)
    assert (stands.slack_s, stands.projected_usd) == (None, None)
    assert rows(stands) == [("deadline", "2026-12-01 20:00 UTC"), ("budget", "an unknown part of $20.00 spent")]
    assert rows(standing(Limits(), Paid(0.0, 0.0), NOW, 5.0, 0.0)) == []


def test_the_bill_stands_beside_the_plan() -> None:
    paid = {"hours": 2.0, "usd": 9.5}
    assert bill_row({"paid": paid, "planned": {"hours": 1.5, "usd": 8.0}}) == [
        ("paid", "$9.50 for 2 h; planned $8.00 for 1 h 30 min")
    ]
    assert bill_row({"paid": paid, "planned": {"hours": None, "usd": None}}) == [("paid", "$9.50 for 2 h")]
    assert bill_row({"paid": {"hours": 2.0, "usd": 0.0}}) == bill_row({}) == []
