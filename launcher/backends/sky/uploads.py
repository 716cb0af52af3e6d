"""What a failed submit leaves in the cloud: the bucket that SkyPilot made for the files that were to travel with the run.

SkyPilot removes it with the job, and of a submit that fails there is none. Refuses to remove what may be another submit's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from launcher.backends.sky.answers import ControllerAway, ControllerStopped
from launcher.backends.sky.controller import is_consolidated
from launcher.runs.errors import LauncherError

CLOCKS_APART_S = 60.0
"""By how much the clocks of this machine and the API server's may differ."""


class Uploads:
    """Looks when it is made, before the submit. Without a controller of its own SkyPilot makes no such bucket."""

    def __init__(self, client: Any, *, is_managed: bool) -> None:
        self._client, self._began = client, time.time()
        self._before: set[str] | None = None
        if is_managed and not is_consolidated():
            with contextlib.suppress(LauncherError):
                self._before = client.uploads()

    def remove(self, tell: Callable[[str], None]) -> None:
        """After the submit failed: remove the one bucket that came since, or say how where it may be another submit's."""
        if self._before is None:
            return
        with contextlib.suppress(LauncherError):  # the submit's own error is what must be read
            new = sorted(self._client.uploads() - self._before)
            if len(new) == 1 and not self._is_another_submits():
                self._client.delete_upload(new[0])
                return
            for name in new:
                tell(
                    f"the upload of a submit is left in the bucket {name}: `sky storage delete {name}`, if no job of yours uses it"
                )

    def _is_another_submits(self) -> bool:
        if self._client.pending_launch(""):
            return True
        try:
            jobs = self._client.jobs("", active_only=True)
        except ControllerStopped:
            return False
        except ControllerAway:
            return True
        return any((job.submitted_at or self._began) >= self._began - CLOCKS_APART_S for job in jobs)
