"""How a run stands against its deadline and its budget, and what it was planned to take. Pure: the caller tells the clock.

Owns the sums and the rows of `dolphin status`; the node keeps the limits (trainer.supervise.limits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from launcher.units import seconds
from trainer.run.limits import Limits
from trainer.run.paid import Paid


@dataclass(frozen=True, slots=True)
class Standing:
    """Seconds and US dollars; times since the epoch. None: not known, or no such limit."""

    deadline_at: float | None
    slack_s: float | None
    """What may still be lost to waits and restarts."""
    projected_end: float | None
    budget_usd: float | None
    spent_usd: float | None
    projected_usd: float | None


def standing(
    limits: Limits, bill: Paid, now: float, seconds_left: float | None, price_usd_per_hour: float | None
) -> Standing:
    """`seconds_left` of training as it goes, None where it is over or not known; `price_usd_per_hour` of the present machine."""
    rest_s = None if seconds_left is None else seconds_left + limits.save_s + limits.export_s
    end = None if rest_s is None else now + rest_s
    total = None
    if rest_s is not None and bill.usd is not None and price_usd_per_hour is not None:
        total = bill.usd + (price_usd_per_hour + limits.upkeep_usd_per_hour) * rest_s / 3600
    slack = None if end is None or limits.deadline_at is None else limits.deadline_at - end
    return Standing(limits.deadline_at, slack, end, limits.budget_usd, bill.usd, total)


def as_values(stands: Standing) -> dict[str, Any]:
    """For scripts."""
    return asdict(stands)


def rows(stands: Standing) -> list[tuple[str, str]]:
    """Label and value, of the limits that there are."""
    found = []
    if stands.deadline_at is not None:
        parts = [_moment(stands.deadline_at)]
        if stands.slack_s is not None and stands.projected_end is not None:
            slack = f"{seconds(stands.slack_s)} to spare" if stands.slack_s >= 0 else f"{seconds(-stands.slack_s)} late"
            parts.append(f"done about {_moment(stands.projected_end)}, {slack}")
        found.append(("deadline", "; ".join(parts)))
    if stands.budget_usd is not None:
        spent = "an unknown part" if stands.spent_usd is None else f"${stands.spent_usd:,.2f}"
        parts = [f"{spent} of ${stands.budget_usd:,.2f} spent"]
        if stands.projected_usd is not None:
            parts.append(f"about ${stands.projected_usd:,.2f} in all")
        found.append(("budget", "; ".join(parts)))
    return found


def bill_row(outcome: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run that is over was planned to take, beside what was paid; nothing where it cost nothing."""
    paid, planned = _cost(outcome.get("paid")), _cost(outcome.get("planned"))
    return [("paid", f"{paid}{f'; planned {planned}' if planned else ''}")] if paid else []


def _cost(cost: Any) -> str:
    hours, usd = (cost.get("hours"), cost.get("usd")) if isinstance(cost, dict) else (None, None)
    if not isinstance(hours, int | float) or not isinstance(usd, int | float) or not usd:
        return ""
    return f"${usd:,.2f} for {seconds(hours * 3600)}"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
