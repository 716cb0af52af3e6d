"""Where ranks find each other: for one node in files of a private folder, for several on the network between them.

torch's stores ask nobody who they are, and what torchrun reads from its own it unpickles: whoever reaches the port of
one runs code as this user. Files in a folder of mode 0700 leave nothing to reach. Several nodes need a port: node 0's
DOLPHIN_MASTER_PORT listens on all of its addresses, which only the nodes' private network may reach (docs/clouds.md).
Refuses to know torch.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

RANKS_STORE = "DOLPHIN_RANKS_STORE"
"""Environment variable that names the file through which the ranks of one node meet; unset where there are several."""
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_NO_SERVER = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""torchrun starts a TCP server for its ranks, on all addresses, also where it meets its peers in a file."""
_TORCHRUN_FILE, _RANKS_FILE = "torchrun", "ranks"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder of mode 0700 on this node's own disk, removed at the end. Raises OSError where there is no room."""
    with tempfile.TemporaryDirectory(prefix="dolphin-rendezvous-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def of_one_node(folder: Path, run_id: str) -> list[str]:
    """torchrun's arguments."""
    return [
        "--nnodes=1", "--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={folder / _TORCHRUN_FILE}",
        f"--rdzv-id={run_id}", "--local-addr=127.0.0.1",
    ]  # fmt: skip


def ranks_environment(environment: Mapping[str, str], folder: Path | None, master_addr: str) -> dict[str, str]:
    """What the ranks need to find each other. `folder` is None where there are several nodes."""
    found = {} if folder is None else {RANKS_STORE: str(folder / _RANKS_FILE), _NO_SERVER: "1"}
    interface = interface_towards(master_addr)
    if interface is not None:
        found |= {name: environment.get(name, interface) for name in _INTERFACE_VARIABLES}
    return found


def init_method(environment: Mapping[str, str]) -> str:
    """For torch.distributed.init_process_group, in a rank."""
    store = environment.get(RANKS_STORE)
    return "env://" if store is None else f"file://{store}"


def interface_towards(address: str) -> str | None:
    """The network interface of this machine from which `address` is reached; None where the address is not known."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(where)  # of a datagram socket: chooses a route and sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == own for entry in addresses):
            found: str | None = name
            return found
    return None
