"""One machine of the pretend cloud, a program of its own: `python -m tests.lab.cloud.node SPEC.json`, with the file that `aws` wrote.

Real: its own mount, process, hostname, IPC, network and boot-time namespaces, a network with the cloud's other nodes (`network`), a root
folder, users and files (`machine`), sshd and everything that comes through it.
Stands in: there is no kernel and no systemd of its own. The node's public address is one of 127.0.0.0/8 of the host,
where connections to port 22 are accepted and handed to an `sshd -i` inside. From inside, 127.0.0.1:CLOUD leads to the cloud's API,
169.254.169.254:80 to its metadata service, port 22 of nodes' public addresses to those, and the nodes' private network to
the others; nothing else leads anywhere, at once and without a time-out.

SIGUSR1 makes it unreachable by ssh, connections that are open included, while what runs in it goes on; SIGUSR2 ends that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tests.lab.cloud import machine
from tests.lab.cloud.network import NEWIPC, NEWNET, NEWNS, NEWPID, NEWTIME, NEWUTS, call, die_with_parent, join_network

End = Callable[[str], tuple[str, int]]
"""Where a connection that was made in the node to this address leads."""


def main(path: Path) -> int:
    spec: dict[str, Any] = json.loads(path.read_text())
    path.with_name("pid").write_text(str(os.getpid()))
    front = socket.create_server((spec["address"], 22), backlog=128)
    ours, theirs = socket.socketpair()
    inside = os.fork()
    if inside == 0:
        ours.close()
        _enter(spec, front, theirs)
    theirs.close()
    front.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 16, 8)
    if not descriptors:
        print("node: it did not come up")
        return 1
    cloud, metadata, ssh = (socket.socket(fileno=number) for number in descriptors)

    def ssh_of(to: str) -> tuple[str, int]:
        return spec["address"] if to in ("127.0.0.1", spec["private"]) else to, 22

    ends: dict[socket.socket, End] = {
        cloud: lambda _: ("127.0.0.1", spec["cloud_port"]), metadata: lambda _: (spec["address"], 80), ssh: ssh_of,
    }  # fmt: skip
    path.with_name("ready").touch()
    for listener, end_of in ends.items():
        threading.Thread(target=_relay, args=(listener, end_of), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(inside, signal.SIGKILL))
    signal.signal(signal.SIGUSR1, lambda *_: _signal_ssh(inside, signal.SIGSTOP))
    signal.signal(signal.SIGUSR2, lambda *_: _signal_ssh(inside, signal.SIGCONT))
    _, status = os.waitpid(inside, 0)
    return 1 if os.waitstatus_to_exitcode(status) else 0


def first_process(keeper: int) -> int:
    """Process 1 of a node, by its number here: a grandchild of the program that keeps the node."""
    pid = keeper
    for _ in range(2):
        pid = _children(pid)[0]
    return pid


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _signal_ssh(inside: int, number: int) -> None:
    """To process 1, which accepts connections, and to every sshd below it."""
    for first in _children(inside):
        waiting = [first]
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if pid == first or Path(f"/proc/{pid}/comm").read_text().strip().startswith("sshd"):
                    os.kill(pid, number)
            waiting += _children(pid)


def _relay(listener: socket.socket, end_of: End) -> None:
    """Connections that were made in the node, continued outside of it."""
    while True:
        near, _ = listener.accept()
        try:
            far = socket.create_connection(end_of(near.getsockname()[0]), timeout=10)
        except OSError:
            near.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )  # a refusal, as the node would see it
            near.close()
            continue
        far.settimeout(None)
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _enter(spec: dict[str, Any], front: socket.socket, channel: socket.socket) -> NoReturn:
    """Namespaces and their network; then the node's process 1."""
    die_with_parent()
    call("unshare", NEWNS | NEWUTS | NEWIPC | NEWNET)
    join_network(spec["network"], spec["number"], spec["private"])
    wanted = (("127.0.0.1", spec["cloud_port"]), ("169.254.169.254", 80), ("0.0.0.0", 22))
    listeners = [socket.create_server(where, backlog=128) for where in wanted]
    call("unshare", NEWPID | NEWTIME)  # the next process is its first: none of the programs above may be
    # SkyPilot knows by the time of the last boot that a node which stops itself has done so, and is a new one now.
    Path("/proc/self/timens_offsets").write_text(f"boottime -{int(time.clock_gettime(time.CLOCK_BOOTTIME))} 0\n")
    first = os.fork()
    if first == 0:
        die_with_parent()
        try:
            machine.build_root(spec)
            machine.cloud_init(spec)
            socket.send_fds(channel, [b"up"], [one.fileno() for one in listeners])
            for one in (*listeners, channel):
                one.close()
            _serve(front)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stdout.flush()
            os._exit(1)
    channel.close()
    _, status = os.waitpid(first, 0)
    os._exit(1 if os.waitstatus_to_exitcode(status) else 0)


def _serve(front: socket.socket) -> NoReturn:
    """Process 1: an sshd for each connection, and the end of processes that nobody waits for."""
    os.closerange(0, 3)
    os.open("/dev/null", os.O_RDWR)
    log = os.open("/var/log/sshd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    front.settimeout(0.5)
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            connection, _ = front.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            os.setsid()
            connection.setblocking(True)
            os.dup2(connection.fileno(), 0)
            os.dup2(connection.fileno(), 1)
            words = ["/usr/sbin/sshd", "-i", "-f", machine.SSHD_CONFIG, "-E", "/var/log/sshd.log"]
            os.execve(words[0], words, environment)
        connection.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
