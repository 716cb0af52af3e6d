"""A rank's processors: those beside its GPU. Memory of the other socket is reached through the link between them, which page-locked
copies and the optimizer in host memory are slow over.

torch's `--numa-binding` does the same, and ends a run where `numactl` is not installed, or where a container has no processor on
the GPU's side; here such a node is left as it is. Refuses to know GPUs: it is given a place on the PCI bus.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SYSTEM = Path("/sys")


def bind_beside(pci_address: str, system: Path = SYSTEM) -> str | None:
    """Bind all threads of this process, and those that they start, to the processors beside the device at `pci_address`
    (`0000:dc:00.0`). Returns the list that the kernel has of them; None, and nothing is changed, where there is one side only,
    where the kernel does not say, or where this process may use none of them.

    Called before memory is taken: pages lie where the thread runs that first writes them.
    """
    try:
        side = int((system / "bus/pci/devices" / pci_address / "numa_node").read_text())
        listed = (system / f"devices/system/node/node{side}/cpulist").read_text().strip()
        beside = processors(listed)
    except (OSError, ValueError):
        return None
    allowed = os.sched_getaffinity(0)
    beside &= allowed
    if not beside or beside == allowed:
        return None
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), beside)
    return listed


def processors(listed: str) -> set[int]:
    """`0-2,8` -> {0, 1, 2, 8}. Raises ValueError for anything else."""
    found: set[int] = set()
    for part in filter(None, listed.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
