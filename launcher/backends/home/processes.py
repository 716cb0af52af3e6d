"""Processes of a local run: who they are beyond a pid, which belong to a run, and how to end all of them.

A pid is given to another process sooner or later, so an identity is a pid with its start time. Workers of torchrun
have sessions of their own and outlive a killed parent, so a run's processes are found by the marker that each of them
inherits in its environment, and by parentage where one dropped it. Refuses to know the ledger.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

RUN_MARKER = "DOLPHIN_RUN_ID"
"""Environment variable that every process of a run carries."""

_POLL_S = 0.1
_KILL_WAIT_S = 10.0
"""How long the kernel may take to end killed processes; one in uninterruptible sleep (a dead network disk) takes longer."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, and no later one that is given its pid."""

    pid: int
    started: str
    """Boot and start time as the kernel counts them: the wall clock, which can be set, plays no part on Linux."""


def identify(pid: int) -> Identity | None:
    """Identity of the live process `pid`; None where there is none (a zombie is none)."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Identity(pid, _started(process))
    except psutil.Error:
        return None


def is_alive(identity: Identity) -> bool:
    return identify(identity.pid) == identity


def of_run(run_id: str, root: Identity | None = None) -> list[psutil.Process]:
    """Live processes of the run: those that carry its marker, `root`, and all their descendants. Never this process or
    one that it runs under."""
    processes: set[psutil.Process] = set()
    spared = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    for process in psutil.process_iter():
        if _marker(process) == run_id:
            processes.add(process)
    if root is not None and is_alive(root):
        processes.add(psutil.Process(root.pid))
    for process in list(processes):
        if process.pid not in spared:
            try:
                processes.update(process.children(recursive=True))
            except psutil.Error:
                continue
    return [p for p in processes if p.pid not in spared and identify(p.pid) is not None]


def roots(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those whose parent is not among them: who must be asked to stop, so that they can stop the others in order."""
    pids = {process.pid for process in processes}
    found = []
    for process in processes:
        try:
            if process.ppid() not in pids:
                found.append(process)
        except psutil.Error:
            continue
    return found


def stop(run_id: str, root: Identity | None, grace_s: float) -> tuple[int, bool, list[str]]:
    """End every process of the run: SIGTERM to its roots, `grace_s` to finish, then SIGKILL to all that are left,
    looking again until none is. Returns how many there were, whether any had to be killed, and what cannot be ended."""
    seen: set[Identity] = set()  # a worker without the marker is known by its parent alone, which may go first
    was_killed = False
    left = _look(run_id, root, seen)
    if left and grace_s > 0:
        for process in roots(left):
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while (left := _look(run_id, root, seen)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    deadline = time.monotonic() + _KILL_WAIT_S
    while left and time.monotonic() < deadline:
        was_killed = True
        for process in left:
            _signal(process, signal.SIGKILL)
        time.sleep(_POLL_S)
        left = _look(run_id, root, seen)
    return len(seen), was_killed, [_describe(p) for p in left]


def _look(run_id: str, root: Identity | None, seen: set[Identity]) -> list[psutil.Process]:
    """Processes of the run that live now, with those that were seen before and live still; adds to `seen`."""
    found = {process.pid: process for process in of_run(run_id, root)}
    seen.update(identity for pid in found if (identity := identify(pid)) is not None)
    for identity in seen:
        if identity.pid not in found and is_alive(identity):
            found[identity.pid] = psutil.Process(identity.pid)
    return list(found.values())


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        return  # it stays in the list of what is left, which is reported


def _marker(process: psutil.Process) -> str | None:
    try:
        environment: dict[str, str] = process.environ()
        return environment.get(RUN_MARKER)
    except (psutil.Error, OSError):
        return None  # another user's, or it has just ended


def _started(process: psutil.Process) -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The command may hold spaces and parentheses; the start time is the 20th field behind its last parenthesis.
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{boot}:{ticks}"
    except FileNotFoundError:
        return f"{process.create_time():.2f}"


def _describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid} ({process.name()}, {process.status()}) of {process.username()}: `kill -9 {process.pid}`"
    except psutil.Error:
        return f"process {process.pid}"
