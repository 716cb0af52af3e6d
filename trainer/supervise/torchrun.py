"""torchrun, with its findings in a file: `python -m trainer.supervise.torchrun`, told by one JSON object on its standard input.

It has `report`, a path, torchrun's `arguments` and an `environment` to add. Whoever starts this may write it later
(`trainer.supervise.agent`): torch is imported meanwhile. An input that ends without it is the order to leave.

torchrun exits with 1 whatever its ranks exit with, and says which died how only in prose. This runs the same code and writes
to `report` {"failures": [{"rank", "pid", "exit_code"}], "signal"}; `failures` holds the ranks that had failed when
torchrun noticed, not those that it then closed. Refuses to know what the ranks do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.run.exits import leave
from trainer.run.run_folder import write_atomic
from trainer.supervise import parent_death


def main() -> int:
    os.environ[parent_death.TORCHRUN_PID] = str(os.getpid())

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
    said = sys.stdin.read()
    if not said:
        return 0
    told = json.loads(said)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())  # of the ranks
    os.environ.update(told["environment"])
    report = Path(told["report"])
    options = run.parse_args(told["arguments"])
    if options.nnodes == "1" and hasattr(dynamic_rendezvous, "_delay"):
        dynamic_rendezvous._delay = _without_skew(dynamic_rendezvous._delay)
    try:
        run.run(options)
    except ChildFailedError as error:
        failures = [
            {"rank": rank, "pid": failure.pid, "exit_code": failure.exitcode}
            for rank, failure in error.failures.items()
        ]
        _write(report, failures, None)
        return 1
    except SignalException as error:
        _write(report, [], error.sigval.name)
        return 1
    _write(report, [], None)
    return 0


def _without_skew(delay: Callable[[Any], None]) -> Callable[[Any], None]:
    """Without the up to 0.3 s, a range, by which torchrun keeps many nodes from asking all at once."""
    return lambda seconds: None if isinstance(seconds, tuple) else delay(seconds)


def _write(report: Path, failures: list[dict[str, int]], signal: str | None) -> None:
    """On a full disk there is no report: the supervisor then judges by what the ranks said."""
    with contextlib.suppress(OSError):
        write_atomic(report, json.dumps({"failures": failures, "signal": signal}))


if __name__ == "__main__":
    leave(main())
