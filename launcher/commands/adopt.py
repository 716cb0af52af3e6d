"""`adopt`: a run whose bucket is all that this machine knows of it."""

from __future__ import annotations

from launcher.backends.sky.adopting import adopt
from launcher.follow import screen


def adopt_command(url: str) -> int:
    """Make it a run of this machine; its id on standard output."""
    record = adopt(url)
    screen.say(
        f"{record.run_id}: is a run of this machine now, in {record.folder}; `dolphin status`, `logs`, `fetch` and `resume` "
        "take its id"
    )
    print(record.run_id)
    return 0
