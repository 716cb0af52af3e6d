"""What wakes the supervisor: signals to it, and children that end. No polling, and no work in handlers.

Owns the supervisor's signal handlers and the reaping of every child, also of adopted ones (as PID 1 or as subreaper).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from types import FrameType

import psutil


class Wake:
    """`wait` returns early on SIGTERM, SIGINT, a child's end or `rouse`. Main thread only, but for `rouse`."""

    def __init__(self) -> None:
        self.stop_signals: list[str] = []
        """Names of the signals that asked for a stop, in order."""
        self._receive, self._send = socket.socketpair()
        self._receive.setblocking(False)
        self._send.setblocking(False)
        signal.set_wakeup_fd(self._send.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stop_signals.append(signal.Signals(number).name)

    def wait(self, timeout_s: float) -> None:
        select.select([self._receive], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            while self._receive.recv(4096):
                pass

    def rouse(self) -> None:
        """End a `wait`, from any thread."""
        with contextlib.suppress(BlockingIOError):
            self._send.send(b"\0")

    def wait_for(self, child: subprocess.Popen[bytes], tick: Callable[[], None], every_s: float = 0.5) -> int:
        """Until `child` has ended: reap what ends meanwhile, and call `tick` at least every `every_s` seconds."""
        while True:
            self.reap(child)
            if child.returncode is not None:
                return child.returncode
            tick()
            self.wait(every_s)

    def reap(self, own: subprocess.Popen[bytes] | None = None) -> None:
        """Reap every child that has ended; `own` through its Popen, which must learn the exit code."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            if own is not None and ended.si_pid == own.pid:
                own.poll()
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(ended.si_pid, os.WNOHANG)
        if own is not None:
            own.poll()


def kill_descendants(
    wake: Wake, own: subprocess.Popen[bytes] | None = None, *, spared: int | None = None, timeout_s: float = 10.0
) -> int:
    """SIGKILL everything below this process and reap it; how many there were. Some may appear while others die. `spared` is the
    id of a process that stays."""
    me, killed, deadline = psutil.Process(), 0, time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        wake.reap(own)
        alive = [child for child in me.children(recursive=True) if child.pid != spared and child.is_running()]
        if not alive:
            break
        for child in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    child.kill()
                    killed += 1
        wake.wait(0.05)
    return killed
