"""Whether a save fits between a cloud's notice and the end of a spot node. Pure; decides nothing, says it in a line."""

from __future__ import annotations

from launcher.backends.base import Offer
from launcher.jobfile.spec import JobSpec
from launcher.units import gigabytes, seconds

NOTICE_S = {"aws": 120.0, "gcp": 30.0}
"""Between the notice and the end, as the clouds promise it."""
DISK_MB_PER_S = {("aws", "medium"): 218.0, ("aws", "high"): 437.0, ("aws", "best"): 4000.0}
"""AWS: gp3 with 3,500 and 7,000 IOPS as SkyPilot 0.14.1 asks for them (IOPS / 16), io2 as Amazon states it. Others depend on
size and machine."""


def note(offer: Offer, job: JobSpec, checkpoint_bytes: int, interval_s: float) -> str | None:
    """A line for the plan, where the offer is spot and both numbers are known. A node writes its share of the checkpoint."""
    tier, has_bucket = job.resources.disk_tier, "://" in (job.checkpoint.store or "")
    cloud = offer.infra.partition("/")[0].lower()
    rate = DISK_MB_PER_S.get((cloud, tier))
    if not offer.spot or cloud not in NOTICE_S or rate is None:
        return None
    share = checkpoint_bytes / offer.num_nodes
    write_s, notice_s = share / 1e6 / rate, NOTICE_S[cloud]
    said = f"a save writes {gigabytes(share)} on each node, {seconds(write_s)} at {rate:,.0f} MB/s; notice is given {notice_s:.0f} s ahead"
    if write_s > notice_s:
        faster = "" if tier == "best" else "; resources.disk_tier: best is faster"
        return f"{said}: too short, so a node that goes costs up to {seconds(interval_s)} of training{faster}"
    left = f", which leaves {seconds(notice_s - write_s)} to send it to the bucket" if has_bucket else ""
    return f"{said}: it fits{left}"
