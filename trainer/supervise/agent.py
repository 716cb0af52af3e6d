"""torchrun as the supervisor's child: started before there is anything for it to run, and told what to run later.

Its import of torch takes as long as preparing data that is prepared already, so the two lie beside each other. Owns the process
and the one message to it. Refuses to know what a rank is and what an end means.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.run import python
from trainer.supervise import log, parent_death


class Torchrun:
    """Lives until it has run what it is told; what it prints goes to the log. Start it on the main thread (`parent_death`)."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            parent_death.command(os.getpid(), *python.command("trainer.supervise.torchrun")),
            env=dict(environment), start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._printed = log.Following(self.process)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def tell(self, report: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Have it run torchrun's `arguments`, with `environment` besides its own. Once; one that is gone hears nothing, and its
        end tells of that."""
        message = {"report": str(report), "arguments": list(arguments), "environment": dict(environment)}
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(json.dumps(message).encode())

    def end(self) -> None:
        """Return once all that it printed is in the log. Call it when the process is gone."""
        self._printed.end()
