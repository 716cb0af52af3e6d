"""From a job's deadline, budget and plan to what a launch does: `limits` of train.json, the market that is chosen once, a refusal.
Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from launcher.backends.base import Offer
from launcher.jobfile.limits import moment_of
from launcher.jobfile.spec import JobSpec
from launcher.plan.launch_plan import LaunchPlan
from launcher.runs.errors import BadUsage
from trainer.run.limits import Limits
from trainer.run.paid import paid
from trainer.run.run_folder import RunDir


def refuse_what_nothing_counts(job: JobSpec, offers: Sequence[Offer]) -> None:
    """BadUsage for a budget where nothing has a price: it would be ignored in silence."""
    if job.budget is not None and offers and not any(offer.price_usd_per_hour for offer in offers):
        raise BadUsage(
            f"budget {job.budget:g}: nothing here has a price to count; state resources.price_per_hour of this machine, or take the "
            "budget out"
        )


def refuse_what_cannot_be_met(plan: LaunchPlan | None) -> None:
    """BadUsage for a deadline or a budget that the best of luck would not keep."""
    outlook = plan.outlook if plan is not None else None
    if outlook is not None and outlook.why_not:
        key = "deadline" if "deadline" in outlook.why_not else "budget"
        raise BadUsage(
            f"{key}: cannot be met: {outlook.why_not}; `dolphin plan` shows more, --force starts it all the same, and it ends there "
            "with what it has"
        )


def refuse_what_is_spent(job: JobSpec, run: RunDir, limits: Limits) -> None:
    """BadUsage for a resume whose budget pays for an end at most."""
    spent = paid(run, limits, None).usd
    if job.budget is None or spent is None:
        return
    per_hour = (limits.price_usd_per_hour or 0.0) + limits.upkeep_usd_per_hour
    if spent + per_hour * limits.ending_s() / 3600 >= job.budget:
        raise BadUsage(
            f"budget: ${spent:,.2f} of ${job.budget:,.2f} is spent, and the rest pays for a save and the export alone; "
            "`--set budget=...` gives more"
        )


def with_chosen_market(job: JobSpec, plan: LaunchPlan | None) -> JobSpec:
    """The job on demand alone, where spot would be too late for its deadline and nobody changes machines on the way."""
    if not _is_on_demand_alone(plan):
        return job
    return job.model_copy(update={"resources": job.resources.model_copy(update={"spot": "never"})})


def is_still_wanted(offer: Offer, plan: LaunchPlan | None) -> bool:
    return not (offer.spot and _is_on_demand_alone(plan))


def _is_on_demand_alone(plan: LaunchPlan | None) -> bool:
    outlook = plan.outlook if plan is not None else None
    return outlook is not None and outlook.how == "on demand" and bool(outlook.not_enforced)


def limits_of(job: JobSpec, plan: LaunchPlan | None) -> Limits:
    """`job.deadline` is a moment already, as a launch fixes it."""
    cost = plan.cost if plan is not None else None
    rows = plan.rows if plan is not None else ()
    row = next((row for row in rows if is_still_wanted(row.offer, plan)), None)
    outlook = plan.outlook if plan is not None else None
    hours = row.hours.mean if row is not None and row.hours is not None else None
    usd = cost.expected if cost is not None else None
    egress = cost.egress if cost is not None else None
    price = row.offer.price_usd_per_hour if row is not None else None
    return Limits(
        deadline_at=None if job.deadline is None else moment_of(job.deadline, datetime.now(UTC)).timestamp(),
        budget_usd=job.budget,
        price_usd_per_hour=job.resources.price_per_hour or price,
        upkeep_usd_per_hour=sum(one.price_usd_per_hour for one in cost.upkeep) if cost is not None else 0.0,
        egress_usd_per_save=egress.price_usd / egress.num_saves if egress is not None and egress.leaves_cloud else 0.0,
        save_s=plan.ending.save_s if plan is not None else 0.0,
        export_s=plan.ending.export_s if plan is not None else 0.0,
        planned_hours=outlook.hours[0] if outlook is not None else hours,
        planned_usd=outlook.usd[0] if outlook is not None else usd,
        notify=job.notify,
    )
