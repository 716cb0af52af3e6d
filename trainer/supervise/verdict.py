"""Why an attempt ended, from what its ranks, torchrun and the watch left behind. Pure: no files, no processes.

Owns which of several ends is the cause: when one rank dies, the others fail too, of its absence.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.run.exits import LIMITS, EndKind
from trainer.supervise.rank_guard import LEFT_AT_ONCE, NO_CONTACT, PEER_LOSS, STORE_GONE, RankEnd


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an attempt left behind."""

    num_ranks: int
    ends: Mapping[int, RankEnd]
    """Last words, by rank."""
    failures: Mapping[int, int]
    """Exit codes of the ranks that torchrun found failed, before it or the supervisor closed any."""
    torchrun_code: int
    step: int
    """Last step that any rank completed."""
    torchrun_signal: str | None = None
    """The signal that torchrun itself was ended with, where it was."""
    hang: str | None = None
    """The watch's reason for bringing the attempt down."""
    oom_kills: int = 0
    """Processes that the kernel killed for memory on this machine during the attempt."""


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """Why an attempt ended."""

    kind: EndKind
    reason: str
    step: int
    can_restart: bool = False
    signature: str | None = field(default=None, compare=False)
    """Equal for two ends of the same error; None where the cause lies outside the run (a kill, a lost peer)."""
    store_gone: bool = False
    """Nobody asked for the stop: steps after the last checkpoint are lost."""
    no_contact: bool = False
    """The ranks did not reach each other when they started."""
    at_once: bool = False
    """A rank left on a second signal, without a save."""


def judge(evidence: Evidence) -> AttemptEnd:
    """The root cause. In this order: wrong input, a rank told to leave at once, a lost checkpoint store, a hang, an error of its own, a silent death,
    a lost peer, a stop.
    """
    ends, step = evidence.ends, evidence.step
    by_time = sorted(ends.items(), key=lambda item: item[1].time)

    for _, end in by_time:
        if end.kind is EndKind.BAD_INPUT:
            return AttemptEnd(EndKind.BAD_INPUT, end.message, step)

    for _, end in by_time:
        if end.kind is EndKind.PREEMPTED and end.error == LEFT_AT_ONCE:
            return AttemptEnd(EndKind.PREEMPTED, end.message, step, at_once=True)

    for _, end in by_time:
        if end.kind is EndKind.PREEMPTED and end.error == STORE_GONE:
            return AttemptEnd(EndKind.PREEMPTED, end.message, step, store_gone=True)

    failed = [(rank, end) for rank, end in by_time if end.kind is EndKind.FAILED]
    own = [(rank, end) for rank, end in failed if not PEER_LOSS.search(end.message)]
    silent = {rank: code for rank, code in evidence.failures.items() if rank not in ends}
    if own:
        rank, end = own[0]
        where = "" if end.final else f"rank {rank}: "
        signature = f"{end.error}|{end.message}"
        lost = end.error == NO_CONTACT
        return AttemptEnd(EndKind.FAILED, f"{where}{end.message}", step, not end.final, signature, no_contact=lost)
    if evidence.hang is not None:
        return AttemptEnd(EndKind.FAILED, f"hang: {evidence.hang}", step, True, "hang")
    asked = _asked_by_signal(evidence, silent)
    if asked is not None:
        return AttemptEnd(EndKind.PREEMPTED, asked, step)
    if silent:
        rank, code = min(silent.items())
        ours = code == -signal.SIGKILL and not evidence.oom_kills
        reason = f"rank {rank} {death(code, evidence.oom_kills)}"
        return AttemptEnd(EndKind.FAILED, reason, step, True, None if ours else f"exit {code}")
    if evidence.torchrun_code < 0 and not _all(ends, evidence.num_ranks, EndKind.DONE):
        return AttemptEnd(EndKind.FAILED, f"torchrun {death(evidence.torchrun_code, evidence.oom_kills)}", step, True)
    if failed:
        rank, end = failed[0]
        return AttemptEnd(EndKind.FAILED, f"rank {rank}: {end.message}", step, not end.final)
    stopped = [end for _, end in by_time if end.kind is EndKind.PREEMPTED or end.kind in LIMITS]
    if stopped:
        reason = next((end.stop_reason for end in stopped if end.stop_reason), stopped[0].message)
        return AttemptEnd(stopped[0].kind, reason, step)
    if _all(ends, evidence.num_ranks, EndKind.DONE):
        return AttemptEnd(EndKind.DONE, "", step)
    missing = [rank for rank in range(evidence.num_ranks) if rank not in ends]
    reason = (
        f"torchrun ended with exit code {evidence.torchrun_code} and no word of rank {missing[0]}; see the log above"
    )
    return AttemptEnd(EndKind.FAILED, reason, step, True, f"torchrun {evidence.torchrun_code}")


def death(code: int, oom_kills: int) -> str:
    """What an exit code without last words says, for a person."""
    if code >= 0:
        return f"ended with exit code {code} and no word; see the log above"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if code != -signal.SIGKILL:
        return f"was ended by {name}"
    if oom_kills:
        return (
            f"was killed by the kernel for want of memory (SIGKILL; {oom_kills} out-of-memory kills on this machine "
            "meanwhile): use a node with more memory (resources.memory_gb), fewer data workers or a higher ZeRO stage"
        )
    return "was killed from outside with SIGKILL (the kernel counted no out-of-memory kill)"


def _asked_by_signal(evidence: Evidence, silent: Mapping[int, int]) -> str | None:
    """A rank or torchrun that got SIGTERM or SIGINT before it could take it was asked to stop, not broken."""
    for rank, code in sorted(silent.items()):
        if code in (-signal.SIGTERM, -signal.SIGINT):
            return f"{signal.Signals(-code).name} to rank {rank}"
    if evidence.torchrun_signal is None or _all(evidence.ends, evidence.num_ranks, EndKind.DONE):
        return None
    if any(end.kind is EndKind.FAILED for end in evidence.ends.values()):
        return None
    return f"{evidence.torchrun_signal} to torchrun"


def _all(ends: Mapping[int, RankEnd], num_ranks: int, kind: EndKind) -> bool:
    return len(ends) == num_ranks and all(end.kind is kind for end in ends.values())
