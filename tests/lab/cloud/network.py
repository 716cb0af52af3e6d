"""The network of the pretend cloud: a bridge in a namespace of its own, to which nodes are joined by their private addresses.

Nodes reach each other there at every port, as instances of one virtual private cloud do; nothing of this machine does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess

NEWTIME, NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x80, 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
PREFIX_LENGTH = 16
"""Of a default VPC: 172.31.0.0/16, whatever the subnet."""
_BRIDGE = "cloud0"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """A function of the C library; OSError where it says -1."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def die_with_parent() -> None:
    """With the thread that made this process, to be exact."""
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)


def hold_network() -> int:
    """Make the network; the id of the process that keeps it as long as its parent's first thread lives."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        call("unshare", NEWNET)
        for words in ("link set lo up", f"link add {_BRIDGE} type bridge forward_delay 0", f"link set {_BRIDGE} up"):
            subprocess.run(["ip", *words.split()], check=True)
        os.write(writer, b"1")
        os.close(writer)
        while True:
            signal.pause()
    os.close(writer)
    if not os.read(reader, 1):
        raise SystemExit("cloud: no bridge can be made for the nodes' network")
    os.close(reader)
    return pid


def join_network(holder: int, number: int, address: str) -> None:
    """Called in a node's new network namespace: loopback, and eth0 with the private address at the bridge."""
    outer = f"node{number}"
    inside = ("link set lo up", f"link add eth0 type veth peer name {outer}", f"link set {outer} netns {holder}",
              f"addr add {address}/{PREFIX_LENGTH} dev eth0", "link set eth0 up", "addr add 169.254.169.254/32 dev lo")  # fmt: skip
    for words in inside:
        subprocess.run(["ip", *words.split()], check=True)
    bridge = ["nsenter", "-t", str(holder), "-n", "ip", "link", "set", outer, "master", _BRIDGE, "up"]
    subprocess.run(bridge, check=True)
