"""How long ranks wait for each other, and whether they reach each other at all.

Owns the patience of process groups and the first all-reduce. Refuses to know what is sent later. A collective that a rank
does not come to is the watch's to end (`trainer.supervise.heartbeat`): it knows what that rank was doing and shows the stacks,
where NCCL's own ten minutes would abort the process with neither.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from trainer.engine import threads
from trainer.engine.out_of_memory import is_out_of_memory
from trainer.run.exits import NoContact

PATIENCE = timedelta(days=1)
CONTACT_LIMIT_S = 300.0
"""How long the first all-reduce may take: NCCL opens its connections in it, seconds on one node, a minute on many."""
CONTACT_ELEMENTS = 1 << 20
"""4 MB in fp32, enough that NCCL takes the path that gradients take, and not the one for small messages."""


def be_patient() -> None:
    """Before the first process group is made: no group of this process gives up by itself, whoever makes it. DeepSpeed makes some
    without saying a time-out, and takes torch's ten minutes for NCCL then."""
    distributed_c10d.default_pg_timeout = PATIENCE
    distributed_c10d.default_pg_nccl_timeout = PATIENCE


def first_contact(
    device: torch.device, give_up: Callable[[NoContact], None], limit_s: float = CONTACT_LIMIT_S
) -> float:
    """Add a few numbers up over all ranks; how many seconds it took. All ranks, once.

    Raises NoContact where it fails or the sum is wrong. Where it does not return within `limit_s`, `give_up` is called in
    another thread and must end the process: nothing brings a thread back from NCCL.
    """
    returned = threading.Event()

    def watch() -> None:
        if not returned.wait(limit_s):
            give_up(
                NoContact(f"a first all-reduce over {dist.get_world_size()} ranks did not return in {limit_s:.0f} s")
            )

    threads.start(watch, "first-contact")
    began = time.perf_counter()
    try:
        ones = torch.ones(CONTACT_ELEMENTS, device=device)
        dist.all_reduce(ones)
        least, most = (float(value) for value in torch.aminmax(ones))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise NoContact(f"a first all-reduce over {dist.get_world_size()} ranks failed: {error}") from error
    finally:
        returned.set()
    if (least, most) != (dist.get_world_size(),) * 2:
        raise NoContact(f"{dist.get_world_size()} ranks added up ones and got numbers from {least:g} to {most:g}")
    return time.perf_counter() - began
