"""A run in a bucket that a node writes and the SkyPilot of this machine does not know: started on another laptop, or forgotten.

Owns what can be known and asked of it through the bucket alone. Knows no SkyPilot.
"""

from __future__ import annotations

import time

from launcher.backends.base import DownReport
from launcher.backends.sky.reach import InBucket
from launcher.runs.errors import BackendError
from trainer.run.run_folder import STOP_FILE
from trainer.run.stores.base import StoreError

_LOOK_EVERY_S = 3.0
_LEAVING_S = 120.0
"""Beyond the grace: a look of the node's at the bucket, its last records, its model's upload cut short."""


def holder(there: InBucket) -> str | None:
    """The node that writes the run at this moment, and since when it was not heard of, in words; None where there is none."""
    from trainer.run.stores.lease import LASTS_S, holder_of

    try:
        found = holder_of(there.store)
    except StoreError as error:
        raise BackendError(str(error)) from None
    if found is None or found[1] >= LASTS_S:
        return None
    return f"on node {found[0].node} (attempt {found[0].attempt}, heard of {found[1]:.0f} s ago)"


def stop(there: InBucket, run_dir: str, grace_s: float) -> DownReport:
    """Ask the node to save and leave for good, and wait until it has given the run back. Its machine is another SkyPilot's:
    whether that is gone is not known here, and not said."""
    node = holder(there)
    there.touch(f"{run_dir}/{STOP_FILE}")
    deadline = time.monotonic() + grace_s + _LEAVING_S
    while (now := holder(there)) is not None and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    done = "still writes the run" if now is not None else "has left the run"
    return DownReport(
        False,
        (
            f"the machine that was {node}: `sky status` and `sky jobs queue` where it was started say whether it is gone",
        ),
        f"asked to stop through the bucket; the node {done}",
    )
